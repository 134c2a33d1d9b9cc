// The page of a node. Everything that comes from the node or from a request is shown as text: nothing here
// parses HTML, and the Content-Security-Policy would stop it.
//
//   Api       requests to the node, with the token
//   Stream    GET /events, reconnected; while it can't be had, whoever uses it polls
//   Model     the captures, as the node's states and events describe them
//   Cards, Rows, Summary, NodePanel     what is on the page
//   TokenDialog, EndDialog, StartDialog
//   Page      composes them, and draws what has changed, once per frame

"use strict";

const MAX_ENDED = 1000;         // what the node remembers
const MAX_REFUSED = 10;
const PAGE_OF_CARDS = 50;
const PAGE_OF_ROWS = 50;
const DRAW_MS = 200;            // the least time between two drawings
const SAMPLES = 60;             // of a plot, one a second
const POLL_MS = 2000;
const NODE_MS = 5000;
const QUIET_MS = 40000;         // the stream has a comment every 15 s
const MAX_LINE = 1 << 20;
const MAX_EARLY = 10000;        // events that wait for the list of captures
const TOKEN_KEY = `pcapsvc.token ${location.pathname}`;    // a proxy may have other nodes at other paths

// ---- Text and elements ----

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const REASONS = {
  packets: "Packet limit", bytes: "Size limit", idle: "Idle", duration: "Time limit",
  past: "Past only", device_lost: "Interface gone", shutdown: "Shutdown", cancelled: "Stop request",
};
const MISSING = {
  too_short: "history too short", size: "history’s memory full", drops: "dropped by the kernel", down: "interface down",
  started: "not yet recorded", limit: "no room in the limits", snap: "packets cut short", none: "no history",
};
const DELIVERY_STATES = {
  pending: "pending", retrying: "retrying", delivered: "delivered", spooled: "in the spool", failed: "failed",
};

function count(value) {
  return value == null ? "–" : number.format(value);
}

function short(value) {
  if (value < 10000) return number.format(value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
  const [unit, size] = value < 1e6 ? ["k", 1e3] : ["M", 1e6];
  return `${(value / size).toFixed(value / size < 100 ? 1 : 0)}${unit}`;
}

function bytes(value) {
  if (value == null) return "–";
  if (value < 1000) return `${value} B`;
  const power = Math.min(4, Math.floor(Math.log10(value) / 3));
  const scaled = value / 1000 ** power;
  return `${scaled.toFixed(scaled < 100 && scaled % 1 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

function plural(value, word) {
  return `${number.format(value)} ${word}${value === 1 ? "" : "s"}`;
}

function lasting(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

function moment(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return "–";
  return (Date.now() - time < 12 * 3600e3 ? clock : dayAndClock).format(time);
}

/** What a capture has of the past, and what is missing of it. */
function pastWords({ requested, first, packets = 0, missing = [] }) {
  const has = packets ? `${plural(packets, "packet")} since ${moment(first)}` : "no packets";
  const lacks = missing.map(({ reason, seconds, packets: lost }) => {
    const sizes = [seconds != null && `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`, lost != null && plural(lost, "packet")].filter(Boolean);
    const why = MISSING[reason] ?? reason;
    return sizes.length ? `${sizes.join(", ")} (${why})` : why;
  });
  return [`Past ${requested} s: ${has}`, lacks.length ? `Missing: ${lacks.join(", ")}` : ""];
}

/** An element with attributes (text only; never "style" or "on…") and children. Strings become text. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set what has changed only, so that nothing is laid out, or read out, again without need. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setAttribute(element, name, value) {
  if (value == null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

function setBar(bar, value, most) {
  const part = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
  const shown = Math.round(part * 1000) / 1000;
  if (bar.value !== shown) bar.value = shown;
  setAttribute(bar, "class", part >= 0.9 ? "near" : null);
}

function instance(template) {
  const root = $(template).content.firstElementChild.cloneNode(true);
  const slots = {};
  for (const slot of root.querySelectorAll("[data-slot]")) slots[slot.dataset.slot] = slot;
  return [root, slots];
}

/** A link for a web address; text for any other location, and for a host alone: there is no capture to be seen. */
function location_(text) {
  let address = null;
  try { address = new URL(text); } catch { /* a path */ }
  if (address && (address.protocol === "http:" || address.protocol === "https:") && address.pathname !== "/") {
    return el("a", { href: address.href, target: "_blank", rel: "noopener noreferrer", title: text }, address.host + address.pathname);
  }
  return el("span", { class: "path mono", title: text, translate: "no" }, text);
}

/** A small plot: an area below a line. */
class Plot {
  constructor(parent) {
    this._area = svg("path", { class: "area" });
    this._line = svg("path", { class: "line" });
    parent.append(svg("svg", { viewBox: "0 0 118 32", preserveAspectRatio: "none" }, this._area, this._line));
  }

  draw(samples) {
    const most = Math.max(1, ...samples);
    const left = 118 - 2 * (samples.length - 1);
    const line = samples.map((value, at) => `${left + 2 * at} ${(30.5 - 28 * value / most).toFixed(1)}`).join("L");
    this._line.setAttribute("d", samples.length > 1 ? `M${line}` : "");
    this._area.setAttribute("d", samples.length > 1 ? `M${left} 32L${line}L118 32Z` : "");
  }
}

function push(samples, value) {
  samples.push(value);
  if (samples.length > SAMPLES) samples.shift();
}

// ---- The node ----

class ApiError extends Error {
  constructor(status, detail, problems = []) {
    super(detail);
    this.status = status;
    this.problems = problems;
  }
}

class Api {
  get token() { return sessionStorage.getItem(TOKEN_KEY); }
  set token(token) {
    if (token) sessionStorage.setItem(TOKEN_KEY, token);
    else sessionStorage.removeItem(TOKEN_KEY);
  }

  /** The response, whatever its content; raises ApiError for errors and if there is no response. */
  async fetch(path, { method = "GET", body, signal, headers = {} } = {}) {
    const all = { ...headers };
    // A header is made of bytes: those of UTF-8.
    if (this.token) all.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(this.token))}`;
    if (body !== undefined) all["Content-Type"] = "application/json";
    let response;
    try {
      // Below the page's own path, which is a proxy's.
      response = await fetch(`.${path}`, {
        method, signal, headers: all, cache: "no-store", credentials: "omit", redirect: "error",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The node can’t be reached.");
    }
    if (response.ok) return response;
    let problem = {};
    try { problem = await response.json(); } catch { /* not from the node itself */ }
    const detail = typeof problem.detail === "string" ? problem.detail : `The node answered ${response.status} ${response.statusText}`;
    throw new ApiError(response.status, detail, Array.isArray(problem.problems) ? problem.problems : []);
  }

  async json(path, options = {}) {
    const signal = options.signal ?? AbortSignal.timeout(20000);
    try {
      return await (await this.fetch(path, { ...options, signal })).json();
    } catch (error) {
      if (error instanceof ApiError) throw error;
      if (options.signal?.aborted) throw error;
      throw new ApiError(0, "The node doesn’t answer.");
    }
  }
}

/** GET /events, read from a fetch, because an EventSource can't send a token. */
class Stream {
  constructor(api, { onEvent, onOpen, onLost }) {
    Object.assign(this, { _api: api, _onEvent: onEvent, _onOpen: onOpen, _onLost: onLost });
    this._lastId = null;
    this._run = 0;
  }

  start() {
    this.stop();
    this._loop(++this._run);
  }

  stop() {
    this._run++;
    this._abort?.abort();
  }

  async _loop(run) {
    let failures = 0;
    while (run === this._run) {
      const opened = performance.now();
      try {
        await this._read(run);
      } catch (error) {
        if (run !== this._run) return;
        if (error instanceof ApiError && (error.status === 401 || error.status === 403)) return this._onLost(error);
      }
      if (run !== this._run) return;
      failures = performance.now() - opened > 10000 ? 1 : failures + 1;
      this._onLost(null);
      const pause = Math.min(30000, 500 * 2 ** failures) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  async _read(run) {
    const abort = this._abort = new AbortController();
    let heard = performance.now();
    const watchdog = setInterval(() => { if (performance.now() - heard > QUIET_MS) abort.abort(); }, 5000);
    try {
      const headers = { Accept: "text/event-stream" };
      if (this._lastId !== null) headers["Last-Event-ID"] = this._lastId;
      const response = await this._api.fetch("/events", { headers, signal: abort.signal });
      if (run !== this._run) return;
      this._onOpen();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      let fields = {};
      for (;;) {
        const { value, done } = await reader.read();
        if (done || run !== this._run) return;
        heard = performance.now();
        const lines = (rest + value).split(/\r\n|\n/);
        rest = lines.pop();
        if (rest.length > MAX_LINE) return abort.abort();
        for (const line of lines) fields = this._line(line, fields);
      }
    } finally {
      clearInterval(watchdog);
      abort.abort();
    }
  }

  /** Take one line. The fields of the event that it belongs to, or of the next one. */
  _line(line, fields) {
    if (line !== "") {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (name === "data") fields.data = fields.data === undefined ? value : `${fields.data}\n${value}`;
      else if (name) fields[name] = value;
      return fields;
    }
    if (fields.id !== undefined) this._lastId = fields.id;
    if (fields.data !== undefined) {
      let event = null;
      try { event = JSON.parse(fields.data); } catch { /* not an event */ }
      if (event && typeof event.type === "string") this._onEvent(event);
    }
    return {};
  }
}

// ---- The captures ----

/** How far a capture has come; it never goes back. */
const RANKS = { capturing: 0, delivering: 1, done: 2, failed: 2 };

/** How many packets were captured so far, including those that a rolling capture has released. */
function captured({ packets = 0, rolling }) {
  return rolling?.captured ?? packets;
}

/** A capture: the node's state of it, and what was seen of its progress here. */
class Capture {
  constructor(state, now) {
    this.id = state.id;
    this.state = state;
    this.rates = [];
    this.isChanged = true;
    this.rate = 0;
    this._sampled = null;
    this.observe(now, true);
  }

  get isRunning() { return this.state.state === "capturing"; }
  get hasEnded() { return !this.isRunning; }

  /** Note the progress that the state has now. */
  observe(now, isFirst = false) {
    const { started } = this.state;
    const packets = captured(this.state);
    const seconds = this.state.seconds ?? Math.max(0, (Date.now() - new Date(started)) / 1000);
    if (isFirst || packets !== this._packets) this._movedAt = packets === 0 ? now - seconds * 1000 : now;
    this._packets = packets;
    this._seconds = seconds;
    this._at = now;
    if (this._sampled === null) this._sampled = { seconds, packets };
    const passed = seconds - this._sampled.seconds;
    if (passed >= 0.9) {
      this.rate = Math.max(0, packets - this._sampled.packets) / passed;
      push(this.rates, this.rate);
      this._sampled = { seconds, packets };
    }
  }

  elapsed(now) { return (this._seconds ?? 0) + (now - this._at) / 1000; }
  idle(now) { return (now - this._movedAt) / 1000; }

  /** What a search looks through. */
  get words() {
    const { id, interface: name, bpf, request = {}, node, source, file } = this.state;
    return [id, name, bpf, node, source, file, ...Object.values(request)].filter((word) => word != null).join(" ").toLowerCase();
  }
}

class Model {
  constructor(announce) {
    this.captures = new Map();    // oldest first
    this.refused = [];
    this.isListChanged = true;
    this.lastProgress = -Infinity;
    this._announce = announce;
  }

  running() { return [...this.captures.values()].filter((capture) => capture.isRunning).reverse(); }
  ended() { return [...this.captures.values()].filter((capture) => capture.hasEnded).reverse(); }

  /** Replace what is known by the node's list, newest first; newer states that came as events stay. */
  load(states) {
    const before = this.captures;
    this.captures = new Map();
    for (const state of [...states].reverse()) {
      const known = before.get(state.id);
      if (known) this.captures.set(state.id, known);
      this.put(state);
    }
    this.isListChanged = true;
  }

  /** Take one state from the node. */
  put(state) {
    const now = performance.now();
    const known = this.captures.get(state.id);
    if (!known) {
      this.captures.set(state.id, new Capture(state, now));
      this.isListChanged = true;
      return;
    }
    if (RANKS[state.state] < RANKS[known.state.state]) return;
    if (state.state === "capturing" && (state.packets ?? 0) < (known.state.packets ?? 0)) return;
    this._change(known, state, now);
  }

  /** The node doesn't know a capture any more. */
  remove(id) {
    if (this.captures.delete(id)) this.isListChanged = true;
  }

  _change(capture, state, now) {
    if (capture.state.state !== state.state) this.isListChanged = true;
    capture.state = state;
    capture.isChanged = true;
    if (capture.isRunning) capture.observe(now);
    this._forgetOld();
  }

  _forgetOld() {
    if (!this.isListChanged || this.captures.size <= MAX_ENDED) return;
    const ended = this.ended();
    for (const capture of ended.slice(MAX_ENDED)) this.captures.delete(capture.id);
  }

  apply(event) {
    const { type, subject, data = {} } = event;
    if (type === "pcapsvc.request.rejected" || type === "pcapsvc.request.busy") return this._refuse(event);
    if (type === "pcapsvc.capture.started") return this._started(event);
    const capture = this.captures.get(subject);
    if (!capture) return;
    const change = this._changeOf(type, data, capture.state);
    if (change === null) return;
    const state = { ...capture.state, ...change };
    if (RANKS[state.state] < RANKS[capture.state.state]) return;
    this._change(capture, state, performance.now());
    if (change.state === "failed") this._announce("failed", capture);
    else if (type === "pcapsvc.capture.stopped") this._announce("ended", capture);
  }

  _changeOf(type, data, state) {
    switch (type) {
      case "pcapsvc.capture.progress": {
        if (state.state !== "capturing" || captured(data) < captured(state)) return null;
        this.lastProgress = performance.now();
        const { packets, bytes: size, seconds, received = null, dropped = null, rolling = null } = data;
        return { packets, bytes: size, seconds, received, dropped, rolling };
      }
      case "pcapsvc.capture.stopped": {
        const { reason, packets, bytes: size, received = null, dropped = null, interface_dropped = null, file = null, history = null, rolling = null } = data;
        const next = RANKS[state.state] > 1 ? state.state : "delivering";
        return { state: next, reason, packets, bytes: size, received, dropped, interface_dropped, file, history, rolling };
      }
      case "pcapsvc.capture.failed": return { state: "failed", problem: data.problem, deliveries: [] };
      case "pcapsvc.capture.done": return { state: state.state === "failed" ? "failed" : "done" };
      case "pcapsvc.delivery.delivered": return deliveryChange(state, data, { state: "delivered", location: data.location });
      case "pcapsvc.delivery.postponed": {
        const { problem, attempts, next_try, spooled } = data;
        return deliveryChange(state, data, { state: spooled ? "spooled" : "retrying", problem, attempts, next_try });
      }
      case "pcapsvc.delivery.spooled": return deliveryChange(state, data, { state: "spooled", problem: data.problem });
      case "pcapsvc.delivery.failed": return deliveryChange(state, data, { state: "failed", problem: data.problem });
      default: return null;
    }
  }

  _started({ subject, data, source = "" }) {
    if (!subject || this.captures.has(subject)) return;
    const { requestid, alertid, alertstr, customer, tags, via, interface: name, bpf = "", snap_length, limits = {}, started, link_type, history = null, rolling = null } = data;
    this.put({
      id: subject, state: "capturing", source: via, node: source.split("/").pop(), interface: name,
      request: { requestid, alertid, alertstr, customer, tags },
      bpf, snap_length, limits, started, link_type, history, rolling, packets: history?.packets ?? 0, bytes: 0, seconds: 0, deliveries: [],
    });
    this._announce("started", this.captures.get(subject));
  }

  _refuse(event) {
    if (this.refused.some((known) => known.id === event.id)) return;
    this.refused.unshift(event);
    this.refused.length = Math.min(this.refused.length, MAX_REFUSED);
    this.isRefusedChanged = true;
  }
}

function deliveryChange(state, { destination }, what) {
  const others = (state.deliveries ?? []).filter((delivery) => delivery.destination !== destination);
  return { deliveries: [...others, { destination, ...what }] };
}

// ---- What is on the page ----

function fillWhat(slots, { interface: name, bpf, request = {}, id, source, link_type: _ }) {
  setText(slots.interface, name ?? "–");
  setAttribute(slots.interface, "title", name);
  setText(slots.filter, bpf || "every packet");
  setAttribute(slots.filter, "title", bpf || null);
  slots.filter.classList.toggle("none", !bpf);
  const labels = [["id", id], ["via", source], ["request", request.requestid], ["customer", request.customer],
    ["alert", request.alertid], ["alert", request.alertstr], ["tags", request.tags]];
  slots.labels.replaceChildren(...labels.filter(([, value]) => value != null && value !== "").map(([key, value]) =>
    el("span", { class: "label", title: `${key}: ${value}` }, el("span", { class: "key" }, key), ` ${value}`)));
}

/** What a rolling capture holds. How far it reaches back goes by the clock of the node. */
function rollingWords({ packets = 0, rolling, started }, elapsed) {
  const { first, captured: all } = rolling;
  const held = `Rolling: newest ${number.format(packets)} of ${plural(all, "packet")}`;
  if (first == null) return held;
  if (elapsed === undefined) return `${held}, since ${moment(first)}`;
  return `${held}, reaches back ${lasting((new Date(started) - new Date(first)) / 1000 + elapsed)}`;
}

function fillPast(slot, state, elapsed) {
  const [has, lacks] = state.history ? pastWords(state.history) : ["", ""];
  const rolls = state.rolling ? rollingWords(state, elapsed) : "";
  if (slot.textContent === rolls + has + lacks) return;
  const parts = [el("span", { class: "rolls" }, rolls), el("span", {}, has), el("span", { class: "warn" }, lacks)];
  slot.replaceChildren(...parts.filter((part) => part.textContent));
}

/** What a capture is called when it is read out. */
function spoken({ interface: name, bpf }) {
  const words = `${name}, ${bpf || "every packet"}`;
  return words.length > 120 ? `${words.slice(0, 119)}…` : words;
}

/** A list that shows the first of many, and more of them on demand. Elements are kept while they are in it. */
class LongList {
  constructor(parent, more, step, make) {
    Object.assign(this, { _parent: parent, _more: more, _step: step, _make: make });
    this._shown = step;
    this.views = new Map();
    more.addEventListener("click", () => {
      const first = this._parent.children.length;
      this._shown += this._step;
      this._onMore();
      // The button moves, or goes away: go on with what it has shown.
      this._parent.children[first]?.querySelector("button:not([hidden])")?.focus({ preventScroll: true });
    });
  }

  set onMore(callback) { this._onMore = callback; }

  show(captures) {
    const visible = captures.slice(0, this._shown);
    const wanted = new Set(visible.map((capture) => capture.id));
    for (const [id, view] of this.views) {
      if (wanted.has(id)) continue;
      this._release(view);
      this.views.delete(id);
    }
    let next = this._parent.firstElementChild;
    for (const capture of visible) {
      let view = this.views.get(capture.id);
      if (!view) {
        view = this._make(capture);
        this.views.set(capture.id, view);
        capture.isChanged = true;
      }
      if (view.root === next) next = next.nextElementSibling;
      else this._parent.insertBefore(view.root, next);
    }
    const hidden = captures.length - visible.length;
    this._more.hidden = hidden === 0;
    setText(this._more, `Show ${Math.min(hidden, this._step)} more of ${number.format(hidden)}`);
  }

  /** Remove an element; if the keyboard's focus is in it, it moves to the nearest heading. */
  _release(view) {
    const hadFocus = view.root.contains(document.activeElement);
    view.root.remove();
    if (hadFocus) this._parent.closest("section").querySelector("h2").focus({ preventScroll: true });
  }
}

class Card {
  constructor(capture, { onEnd, onDownload }) {
    this._capture = capture;
    [this.root, this._slots] = instance("card");
    this._plot = new Plot(this._slots.plot);
    const { end, download } = this._slots;
    end.addEventListener("click", () => onEnd(capture));
    download.addEventListener("click", () => onDownload(capture, download));
    fillWhat(this._slots, capture.state);
    const what = spoken(capture.state);
    setAttribute(end, "aria-label", `End ${what}`);
    setAttribute(download, "aria-label", `Download so far: ${what}`);
    for (const [limit, words] of [["packets", "Packets"], ["bytes", "Size"], ["timeout", "Idle time"], ["duration", "Time"]]) {
      setAttribute(this._slots[`${limit}-bar`], "aria-label", `${words} toward the limit`);
      this._slots[`${limit}-bar`].closest(".limit").hidden = capture.state.limits?.[limit] == null;
    }
  }

  /** Draw what was known at a time; whether the rate is still known. */
  draw(now, isLive) {
    const { state, rates, rate } = this._capture;
    const { limits = {} } = state;
    const slots = this._slots;
    const elapsed = Math.min(this._capture.elapsed(now), limits.duration ?? Infinity);
    const idle = Math.min(this._capture.idle(now), limits.timeout ?? Infinity, elapsed);
    setText(slots.rate, isLive ? short(rate) : "–");
    const most = limits.packets >= 1e6 ? short(limits.packets) : count(limits.packets);
    setText(slots.packets, `${count(state.packets ?? 0)} / ${most}`);
    setText(slots.bytes, `${bytes(state.bytes ?? 0)} / ${bytes(limits.bytes)}`);
    setText(slots.timeout, `${Math.floor(idle)} / ${count(limits.timeout)} s`);
    setText(slots.duration, `${count(Math.floor(elapsed))} / ${count(limits.duration)} s`);
    setBar(slots["packets-bar"], state.packets ?? 0, limits.packets);
    setBar(slots["bytes-bar"], state.bytes ?? 0, limits.bytes);
    setBar(slots["timeout-bar"], idle, limits.timeout);
    setBar(slots["duration-bar"], elapsed, limits.duration);
    slots.download.hidden = !(state.packets > 0);
    if (!this._capture.isChanged) return;
    this._capture.isChanged = false;
    this._plot.draw(rates);
    fillPast(slots.past, state, this._capture.elapsed(now));
    setText(slots.drops, dropWords(state));
    slots.drops.classList.toggle("bad", state.dropped > 0);
  }
}

function dropWords({ dropped, received }) {
  if (dropped == null) return "";
  if (dropped === 0) return "none dropped";
  const part = received > 0 ? 100 * dropped / received : null;
  return `${short(dropped)} dropped${part === null ? "" : `, ${part < 0.1 ? "< 0.1" : part.toFixed(1)} %`}`;
}

class Row {
  constructor(capture, { onDownload }) {
    this._capture = capture;
    [this.root, this._slots] = instance("row");
    const { download, started } = this._slots;
    download.addEventListener("click", () => onDownload(capture, download));
    setAttribute(download, "aria-label", `Download ${spoken(capture.state)}`);
    setText(started, moment(capture.state.started));
    setAttribute(started, "datetime", capture.state.started);
    setAttribute(started, "title", capture.state.started);
    fillWhat(this._slots, capture.state);
  }

  draw() {
    if (!this._capture.isChanged) return;
    this._capture.isChanged = false;
    const { state } = this._capture;
    const slots = this._slots;
    const failed = state.state === "failed";
    setText(slots.reason, failed ? "Failed" : REASONS[state.reason] ?? state.reason ?? "–");
    setAttribute(slots.reason, "data-kind", failed ? "bad" : state.reason === "device_lost" ? "warn" : state.state === "delivering" ? "busy" : "plain");
    setText(slots.problem, failed ? state.problem ?? "" : dropped(state));
    fillPast(slots.past, state);
    setText(slots.packets, failed ? "–" : count(state.packets));
    setText(slots.bytes, failed || !state.packets ? "–" : bytes(state.bytes));
    slots.deliveries.replaceChildren(...this._deliveries(state));
    slots.download.hidden = failed || !state.packets || state.pcap === false;
  }

  _deliveries(state) {
    if (state.state === "failed") return [];
    if (state.packets === 0) return [el("li", { class: "muted" }, "no packets, nothing to deliver")];
    if (!state.deliveries?.length) return state.state === "delivering" ? [el("li", { class: "muted" }, "delivering…")] : [];
    return state.deliveries.map((delivery) => {
      const { destination, state: phase, location, problem, attempts } = delivery;
      const words = phase === "retrying" && attempts ? `retrying (${plural(attempts, "attempt")})` : DELIVERY_STATES[phase] ?? phase;
      const item = el("li", { "data-state": phase }, el("span", { class: "dot" }), el("strong", {}, destination), " ");
      if (phase === "delivered" && location) item.append(location_(location));
      else item.append(el("span", { class: "muted" }, words));
      if (problem && phase !== "delivered") item.append(el("span", { class: "why", title: problem }, problem));
      return item;
    });
  }
}

function dropped(state) {
  const lost = (state.dropped ?? 0) + (state.interface_dropped ?? 0);
  return lost > 0 ? `${number.format(lost)} dropped` : "";
}

class Summary {
  constructor() {
    this._plot = new Plot($("tile-plot"));
    this._rates = [];
    this._sampledAt = 0;
  }

  draw(running, node, now, isLive) {
    const rate = running.reduce((sum, capture) => sum + capture.rate, 0);
    if (isLive && now - this._sampledAt >= 1000) {
      this._sampledAt = now;
      push(this._rates, rate);
      this._plot.draw(this._rates);
    }
    setText($("tile-rate"), isLive ? short(rate) : "–");
    setText($("tile-running"), count(running.length));
    const lost = running.reduce((sum, { state }) => sum + (state.dropped ?? 0), 0);
    const seen = running.reduce((sum, { state }) => sum + (state.received ?? 0), 0);
    setText($("tile-dropped"), short(lost));
    setText($("tile-dropped-of"), seen > 0 ? `of ${short(seen)} packets` : "");
    $("tile-dropped").classList.toggle("bad", lost > 0);
    if (!node) return;
    const { limits = {}, captures = {}, spool } = node;
    setText($("tile-running-of"), limits.captures ? `of up to ${count(limits.captures)}` : "");
    setText($("tile-held"), bytes(captures.held_bytes));
    setText($("tile-held-of"), limits.memory ? `of ${bytes(limits.memory)}` : "");
    setBar($("tile-held-bar"), captures.held_bytes ?? 0, limits.memory);
    $("tile-held-bar").hidden = !limits.memory;
    setText($("tile-spool"), spool ? count(spool.entries) : "–");
    setText($("tile-spool-of"), spool ? `${bytes(spool.bytes)} of ${bytes(spool.max_bytes)}` : "no spool");
    setBar($("tile-spool-bar"), spool?.bytes ?? 0, spool?.max_bytes);
    $("tile-spool-bar").hidden = !spool;
  }
}

class NodePanel {
  draw(node) {
    const { name, version, started, limits = {}, sources = [], destinations = [], api } = node;
    setText($("node-name"), name);
    document.title = `${name} – pcapsvc`;
    const up = (Date.now() - new Date(started)) / 1000;
    const facts = [["Version", version], ["Up for", Number.isNaN(up) ? "–" : lasting(up)], ["Packet limit", count(limits.packets)],
      ["Size limit", bytes(limits.bytes)], ["Time limit", lasting(limits.duration ?? 0)], ["Captures at once", count(limits.captures)]];
    if (api) facts.push(["API", api]);
    this._fill($("node-facts"), facts.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value ?? "–"))));
    this._fill($("sources"), sources.map((source) => this._state(
      source.name, source.connected ? "good" : "bad", source.connected ? "connected" : "not connected", source.problem)));
    this._fill($("destinations"), destinations.length ? destinations.map(({ name: destination, waiting = 0, spooled = 0 }) => {
      const words = [waiting && `${count(waiting)} waiting`, spooled && `${count(spooled)} in the spool`].filter(Boolean).join(", ");
      return this._state(destination, words ? "busy" : "good", words || "nothing waiting");
    }) :
      [el("li", { class: "muted" }, "None is configured")]);
  }

  _state(name, kind, words, problem) {
    const item = el("li", { "data-state": kind }, el("span", { class: "dot" }), el("strong", {}, name), el("span", { class: "muted" }, words));
    if (problem) item.append(el("span", { class: "why" }, problem));
    return item;
  }

  /** Replace children, unless they say the same. */
  _fill(parent, children) {
    const same = children.length === parent.children.length &&
      children.every((child, at) => child.isEqualNode(parent.children[at]));
    if (!same) parent.replaceChildren(...children);
  }

  drawRefused(events) {
    $("refused-panel").hidden = events.length === 0;
    $("refused").replaceChildren(...events.map(({ type, time, data = {} }) => {
      const words = type.endsWith("busy") ? data.reason : (data.problems ?? []).map(({ path, value, rule }) =>
        `${path}${value == null ? "" : ` = ${value}`}: ${rule}`).join("; ");
      const from = [data.via, data.requestid ?? data.customer].filter(Boolean).join(" · ");
      return el("li", {},
        el("p", { class: "muted" }, el("time", { datetime: time }, moment(time)), ` ${type.endsWith("busy") ? "busy" : "rejected"}`, from ? ` · ${from}` : ""),
        el("p", { class: "why", title: words }, words ?? ""));
    }));
  }
}

// ---- Dialogs ----

class Dialog {
  constructor(name) {
    this._dialog = $(`${name}-dialog`);
    this._form = $(`${name}-form`);
    this._form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    for (const button of this._dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => this.close());
    // A click on the backdrop, not one that began inside and ended there.
    this._dialog.addEventListener("mousedown", (event) => { if (event.target === this._dialog) this.close(); });
  }

  get isOpen() { return this._dialog.open; }
  show() { if (!this._dialog.open) this._dialog.showModal(); }
  close() { this._dialog.close(); }
}

class TokenDialog extends Dialog {
  constructor(onToken) {
    super("token");
    this._onToken = onToken;
  }

  ask(problem) {
    if (this.isOpen) return;
    setText($("token-error"), problem ?? "");
    setAttribute($("token"), "aria-invalid", problem ? "true" : null);
    $("token").value = "";
    this.show();
    $("token").focus();
  }

  submit() {
    const token = $("token").value.trim();
    if (!token) {
      setText($("token-error"), "Enter a token.");
      $("token").focus();
      return;
    }
    $("token").value = "";
    this.close();
    this._onToken(token);
  }
}

class EndDialog extends Dialog {
  constructor(api, onEnded) {
    super("end");
    Object.assign(this, { _api: api, _onEnded: onEnded });
  }

  ask(capture) {
    this._capture = capture;
    const { interface: name, bpf } = capture.state;
    $("end-what").replaceChildren(el("span", { class: "mono" }, name), ` · ${bpf || "every packet"}`);
    setText($("end-error"), "");
    $("end-confirm").disabled = false;
    this.show();
    $("end-confirm").focus();
  }

  async submit() {
    const capture = this._capture;
    $("end-confirm").disabled = true;
    try {
      const state = await this._api.json(`/captures/${encodeURIComponent(capture.id)}`, { method: "DELETE" });
      this.close();
      this._onEnded(state);
    } catch (error) {
      setText($("end-error"), error.message);
      $("end-confirm").disabled = false;
      $("end-confirm").focus();
      if (error.status === 401) this._onEnded(error);
    }
  }
}

/** Which packets are wanted: the fields in plain words, and the filter of an expert beside them. */
class Words {
  static LISTS = ["host", "net", "port", "portrange", "protocol", "src", "dst", "vlan"];
  static NUMBERS = ["port", "vlan"];
  static FIELDS = [...Words.LISTS, "flags", "direction"];

  static inputs() {
    return [...Words.LISTS.map($), ...Words._flags(), $("direction"), $("bpf")];
  }

  static _flags() { return [...document.getElementsByName("flags")]; }

  /** What a field says, in the values of a request; undefined if it is empty. */
  static value(name) {
    if (name === "direction") return $("direction").value || undefined;
    const flags = name === "flags" && Words._flags().filter((box) => box.checked).map((box) => box.value);
    const words = flags || $(name).value.split(/[\s,]+/).filter(Boolean);
    const isNumber = (word) => /^\d{1,15}$/.test(word) && (name === "protocol" || Words.NUMBERS.includes(name));
    const values = words.map((word) => (isNumber(word) ? Number(word) : word));
    return values.length > 1 ? values : values[0];
  }

  /** All fields that are not empty, except some. */
  static request(except = []) {
    const request = {};
    for (const name of Words.FIELDS) {
      if (except.includes(name)) continue;
      const value = Words.value(name);
      if (value !== undefined) request[name] = value;
    }
    if ($("bpf").value.trim()) request.bpf = $("bpf").value;
    return request;
  }

  /** What is wrong with a field, as far as the node would call it by another name; null if nothing is. */
  static problem(name) {
    if (!Words.NUMBERS.includes(name)) return null;
    const value = Words.value(name);
    const wrong = [value].flat().find((one) => typeof one === "string");
    if (wrong === undefined) return null;
    return name === "port" && /^\d+-\d+$/.test(wrong) ? `${wrong} belongs in “Port range”.` : `${wrong} is not a number.`;
  }
}

/** The text below the filter: what it is, and whether it is valid, asked of the node while it is typed. */
class FilterCheck {
  constructor(api, firstInterface, onProblem) {
    Object.assign(this, { _api: api, _interface: firstInterface, _onProblem: onProblem });
    for (const field of Words.inputs()) {
      field.addEventListener("input", () => {
        if (field !== $("bpf")) onProblem(field.name, "");
        this.soon();
      });
    }
  }

  soon() {
    this._abort?.abort();
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this.now(), 300);
  }

  /** Show what is wrong with any field. The node is asked, but not about fields that it would call by another name. */
  async now() {
    this._abort?.abort();
    clearTimeout(this._timer);
    for (const name of Words.FIELDS) this._onProblem(name, "");
    const wrong = Words.FIELDS.filter((name) => Words.problem(name));
    for (const name of wrong) this._onProblem(name, Words.problem(name));
    const body = Words.request(wrong);
    if (Object.keys(body).length === 0) {
      this._say("", "");
      return this._showFilter("");
    }
    const abort = this._abort = new AbortController();
    const name = this._interface();
    if (name) body.interface = name;
    this._say("busy", "Checking…");
    try {
      const answer = await this._api.json("/filters", { method: "POST", body, signal: abort.signal });
      this._showFilter(wrong.length ? "" : answer.filter);
      if (!answer.valid) this.refused(answer.problems);
      else if (wrong.length) this._say("", "");
      else this._say("good", `Valid: ${plural(answer.instructions, "instruction")}`);
    } catch (error) {
      if (abort.signal.aborted) return;
      this._showFilter("");
      if (error.problems?.length) return this.refused(error.problems);
      // Whether it is valid is then judged at the start.
      this._say("unknown", error.status === 429 || error.status === 503 ? "It will be checked at the start." : error.message);
    }
  }

  /** Show why the filter was refused: beside its fields, or below it. */
  refused(problems) {
    const others = problems.filter(({ path }) => !Words.FIELDS.includes(path));
    const byField = new Map();
    for (const problem of problems) {
      if (!others.includes(problem)) byField.set(problem.path, [...(byField.get(problem.path) ?? []), problem]);
    }
    for (const [path, found] of byField) this._onProblem(path, problemWords(found.slice(0, 3)));
    if (others.length) this._say("bad", problemWords(others));
    else this._say("", "");
  }

  _showFilter(words) {
    setText($("filter-text"), words);
    // Of a filter alone, nobody has to be told what it is.
    $("filter-result").hidden = !words || words === $("bpf").value;
  }

  _say(kind, words) {
    setText($("filter-state"), words);
    setAttribute($("filter-state"), "data-kind", kind || null);
    setAttribute($("bpf"), "aria-invalid", kind === "bad" ? "true" : null);
  }
}

function problemWords(problems) {
  return (problems ?? []).map(({ value, rule }) => `${value == null ? "It" : value} ${rule}`).join("; ") || "It is not valid.";
}

class StartDialog extends Dialog {
  constructor(api, onStarted) {
    super("start");
    Object.assign(this, { _api: api, _onStarted: onStarted, _interfaces: [], _node: null });
    this._check = new FilterCheck(api, () => this._firstInterface(), (name, words) => this._error(name, words));
    for (const radio of this._form.elements.by) radio.addEventListener("change", () => this._showChoices());
    $("choices").addEventListener("change", () => { this._error("interface", ""); this._check.soon(); this._showPast(); });
    for (const name of ["before", "pastonly", "rolling"]) $(name).addEventListener("input", () => this._showPast());
    for (const name of StartDialog.NUMBERS) $(name).addEventListener("input", () => this._error(name, ""));
  }

  static NUMBERS = ["before", "packets", "bytes", "timeout", "duration", "snap"];
  static TEXTS = ["tags", "customer", "alertid", "requestid", "puturl"];
  static CHOICES = ["format", "compress"];

  async open(node) {
    this._node = node;
    // It is a secret: it is there for one request only, and only if the node permits any.
    $("puturl").value = "";
    $("put").hidden = !node.destinations?.some((one) => one.name === "puturl");
    this._showLimits(node);
    this._showForms(node);
    this._clearErrors();
    this.show();
    try {
      const { interfaces } = await this._api.json("/interfaces");
      this._interfaces = interfaces;
      const names = this._aliases();
      $("by").hidden = names.length === 0;
      if (names.length === 0) this._form.elements.by.value = "interface";
      this._showChoices();
      $("choices").querySelector("input:not(:disabled)")?.focus();
    } catch (error) {
      this._summary(error.message);
      if (error.status === 401) this._onStarted(error);
    }
  }

  _aliases() { return [...new Set(this._interfaces.flatMap((one) => one.aliases ?? []))]; }

  _chosen() { return [...$("choices").querySelectorAll("input:checked")].map((box) => box.value); }

  /** The interfaces that are chosen, by their names or by aliases. */
  _meant() {
    const chosen = new Set(this._chosen());
    if (this._form.elements.by.value === "interface") return this._interfaces.filter((one) => chosen.has(one.name));
    return this._interfaces.filter((one) => one.aliases?.some((alias) => chosen.has(alias)));
  }

  /** Offer the past, if there is one, and say how much of it. */
  _showPast() {
    const known = this._interfaces.filter((one) => one.history);
    const isRolling = $("rolling").checked;
    $("past").hidden = known.length === 0 && !isRolling;
    for (const name of ["packets", "timeout"]) $(name).disabled = isRolling;
    const meant = this._meant();
    $("pastonly").disabled = isRolling || $("before").value === "";
    if ($("pastonly").disabled) $("pastonly").checked = false;
    const instead = $("pastonly").checked ? ", and will have no packets" : ", and is captured from now on";
    const words = (meant.length ? meant : known).map(({ name, history }) => {
      if (!history) return `${name} has no history${meant.some((one) => one.history) ? instead : ""}`;
      return `${name} remembers ${lasting(history.seconds)}${history.problem ? ` (not recorded now: ${history.problem})` : ""}`;
    });
    if (isRolling) words.unshift("At the end, keeps the packets of this many seconds");
    setText($("before-hint"), `${words.slice(0, 3).join("; ")}${words.length > 3 ? `; and ${words.length - 3} more` : ""}`);
  }

  /** What the request says of the past; false if the number can't be sent. */
  _past() {
    if ($("past").hidden) return {};
    const before = this._number("before");
    if (before == null) return before === null ? {} : false;
    const meant = this._meant();
    const isMixed = meant.some((one) => one.history) && meant.some((one) => !one.history);
    return { before, ...($("pastonly").checked && { pastonly: true }), ...(isMixed && { beforeoptional: true }) };
  }

  _firstInterface() {
    const [first] = this._chosen();
    if (first === undefined || this._form.elements.by.value === "interface") return first;
    return this._interfaces.find((one) => one.aliases?.includes(first))?.name;
  }

  _showChoices() {
    const byAlias = this._form.elements.by.value === "alias";
    const chosen = new Set(this._chosen());
    const list = byAlias
      ? this._aliases().map((alias) => [alias, this._interfaces.filter((one) => one.aliases?.includes(alias))])
      : this._interfaces.map((one) => [one.name, [one]]);
    // Of an interface that is down, there may still be the past.
    const isUp = ([, members]) => members.some((one) => one.up !== false);
    const isUsable = (choice) => isUp(choice) || choice[1].some((one) => one.history);
    list.sort((one, other) => isUsable(other) - isUsable(one));
    $("choices").replaceChildren(...list.map((choice) => {
      const [value, members] = choice;
      const [up, usable] = [isUp(choice), isUsable(choice)];
      const box = el("input", { type: "checkbox", name: "choice", value, disabled: !usable });
      box.checked = usable && (chosen.has(value) || list.length === 1);
      const notes = byAlias ? members.map((one) => one.name) : members[0].index === 0 ? ["all of them, in one file"] : [...(members[0].altnames ?? []), ...(members[0].addresses ?? [])];
      if (!up) notes.unshift(members.every((one) => one.index === null) ? "gone" : "down");
      if (notes.length === 0) notes.push("no address");
      return el("label", { class: "choice", title: [value, ...notes].join(" · ") }, box,
        el("span", { class: "choice-name mono", translate: "no" }, value), el("span", { class: "choice-note" }, notes.join(" · ")));
    }));
    this._showPast();
  }

  _showLimits({ limits = {}, defaults = {} }) {
    const say = (name, most, words, usual = most) => {
      setText($(`${name}-hint`), most ? `Up to ${words}` : "");
      if (name !== "bytes") setAttribute($(name), "max", most);
      setAttribute($(name), "placeholder", usual ? (name === "bytes" ? String(usual / 1e6) : String(usual)) : null);
    };
    say("packets", limits.packets, count(limits.packets));
    say("bytes", limits.bytes, bytes(limits.bytes));
    say("timeout", limits.timeout, count(limits.timeout), defaults.timeout);
    say("duration", limits.duration, count(limits.duration));
    say("snap", limits.snaplength, count(limits.snaplength), defaults.snaplength);
  }

  /** Offer the formats of the node, and say how its destinations compress files. */
  _showForms({ formats = [], defaults = {}, destinations = [] }) {
    const chosen = $("format").value;
    const usual = el("option", { value: "" }, `As the node has it (${defaults.format ?? "pcap"})`);
    $("format").replaceChildren(usual, ...formats.map((name) => el("option", { value: name }, name)));
    $("format").value = formats.includes(chosen) ? chosen : "";
    setText($("compress-hint"), destinations.map(({ name, compress }) => `${name}: ${compress}`).join("; "));
  }

  _clearErrors() {
    for (const name of ["interface", ...Words.FIELDS, ...StartDialog.NUMBERS, ...StartDialog.TEXTS, ...StartDialog.CHOICES]) this._error(name, "");
    this._summary("");
  }

  _error(name, words) {
    setText($(`${name}-error`), words);
    if (name !== "interface") setAttribute($(name), "aria-invalid", words ? "true" : null);
  }

  _summary(words) {
    setText($("start-error"), words);
  }

  /** A number of the form; null if it was left out, and undefined if it can't be sent. */
  _number(name) {
    const field = $(name);
    if (field.value === "" && !field.validity.badInput) return null;
    const most = this._node?.limits?.[name === "snap" ? "snaplength" : name] ?? Infinity;
    const value = name === "bytes" ? Math.round(field.valueAsNumber * Number($("bytes-unit").value)) : field.valueAsNumber;
    if (!Number.isInteger(value) || value < 1) this._error(name, "Must be a whole number, 1 or more.");
    else if (value > most) this._error(name, `Must be at most ${name === "bytes" ? bytes(most) : number.format(most)} on this node.`);
    else return value;
    return undefined;
  }

  /** The request; null if something in the form is wrong, which is then shown. */
  _request() {
    this._clearErrors();
    const chosen = this._chosen();
    const request = { node: this._node.name, [this._form.elements.by.value]: chosen };
    let isValid = chosen.length > 0;
    if (!isValid) this._error("interface", this._form.elements.by.value === "alias" ? "Choose at least one alias." : "Choose at least one interface.");
    for (const name of Words.FIELDS) {
      const problem = Words.problem(name);
      if (problem) this._error(name, problem);
      isValid &&= !problem;
    }
    Object.assign(request, Words.request());
    if ($("rolling").checked) request.rolling = true;
    const past = this._past();
    if (past === false) isValid = false;
    else Object.assign(request, past);
    for (const name of StartDialog.NUMBERS) {
      if (name === "before" || $(name).disabled) continue;
      const value = this._number(name);
      if (value === undefined) isValid = false;
      else if (value !== null) request[name] = value;
    }
    for (const name of StartDialog.CHOICES) if ($(name).value) request[name] = $(name).value;
    for (const name of StartDialog.TEXTS) {
      const value = $(name).value.trim();
      if (value) request[name] = name === "alertid" && /^(0|-?[1-9]\d{0,14})$/.test(value) ? Number(value) : value;
    }
    return isValid ? request : null;
  }

  async submit() {
    const request = this._request();
    if (request === null) {
      this._focusFirstError();
      const focused = document.activeElement;
      await this._check.now();
      // The node may have found one before it.
      if (document.activeElement === focused) this._focusFirstError();
      return;
    }
    $("start-submit").disabled = true;
    try {
      const answer = await this._api.json("/captures", { method: "POST", body: request });
      $("puturl").value = "";
      this.close();
      this._onStarted(answer);
    } catch (error) {
      this._refused(error);
    } finally {
      $("start-submit").disabled = false;
    }
  }

  _refused(error) {
    if (error.status === 401) return this._onStarted(error);
    const rest = [];
    const isOfFilter = ({ path }) => path === "bpf" || path === "filter" || Words.FIELDS.includes(path);
    const ofFilter = error.problems.filter(isOfFilter);
    if (ofFilter.length) this._check.refused(ofFilter);
    for (const { path, value, rule } of error.problems.filter((problem) => !isOfFilter(problem))) {
      const field = String(path).split(/[.[]/)[0].toLowerCase();
      if (field === "interface" || field === "alias") this._error("interface", `${value ?? ""} ${rule}`.trim());
      else if ($(`${field}-error`)) this._error(field, rule);
      else rest.push(`${path}: ${rule}`);
    }
    this._summary(error.problems.length === 0 ? error.message : rest.join("; "));
    this._focusFirstError();
  }

  _focusFirstError() {
    const first = this._form.querySelector("[aria-invalid=true]") ??
      ($("interface-error").textContent ? $("choices").querySelector("input:not(:disabled)") : $("start-error"));
    const folded = first?.closest("details");
    if (folded) folded.open = true;
    first?.focus();
  }
}

// ---- All of it ----

/** Words for a screen reader: a few at a time, however much happens. */
class Announcer {
  constructor() { this._waiting = { started: [], ended: [], failed: [] }; }

  note(what, capture) {
    this._waiting[what].push(capture);
    this._timer ??= setTimeout(() => this._say(), 1500);
  }

  _say() {
    this._timer = null;
    const words = Object.entries(this._waiting).filter(([, captures]) => captures.length).map(([what, captures]) =>
      captures.length === 1 ? `Capture on ${spoken(captures[0].state)} ${what}` : `${plural(captures.length, "capture")} ${what}`);
    this._waiting = { started: [], ended: [], failed: [] };
    setText($("announcer"), words.join(". "));
  }
}

function toast(words, kind = "plain", seconds = 6) {
  const close = el("button", { type: "button", class: "icon", "aria-label": "Dismiss" }, "×");
  const message = el("div", { class: "toast", "data-kind": kind, role: kind === "bad" ? "alert" : "status" }, el("p", {}, words), close);
  const remove = () => message.remove();
  close.addEventListener("click", remove);
  $("toasts").append(message);
  while ($("toasts").children.length > 4) $("toasts").firstElementChild.remove();
  setTimeout(remove, seconds * 1000);
}

class Page {
  constructor() {
    this._api = new Api();
    this._announcer = new Announcer();
    this._model = new Model((what, capture) => this._announcer.note(what, capture));
    this._stream = new Stream(this._api, {
      onEvent: (event) => this._onEvent(event), onOpen: () => this._onOpen(), onLost: (error) => this._onLost(error),
    });
    this._summary = new Summary();
    this._panel = new NodePanel();
    this._tokenDialog = new TokenDialog((token) => { this._api.token = token; this.start(); });
    this._endDialog = new EndDialog(this._api, (answer) => this._onEnded(answer));
    this._startDialog = new StartDialog(this._api, (answer) => this._onStarted(answer));
    const actions = { onEnd: (capture) => this._endDialog.ask(capture), onDownload: (capture, button) => this._download(capture, button) };
    this._cards = new LongList($("running"), $("running-more"), PAGE_OF_CARDS, (capture) => new Card(capture, actions));
    this._rows = new LongList($("recent"), $("recent-more"), PAGE_OF_ROWS, (capture) => new Row(capture, actions));
    this._cards.onMore = this._rows.onMore = () => { this._model.isListChanged = true; this._drawSoon(); };
    this._isStreaming = false;
    this._early = null;
    this._stale = new Set();
    this._drawnAt = -Infinity;
    this._listen();
  }

  _listen() {
    const open = () => { if (this._node) this._startDialog.open(this._node); };
    $("open-start").addEventListener("click", open);
    $("empty-start").addEventListener("click", open);
    $("forget-token").addEventListener("click", () => {
      this._api.token = null;
      // Nothing that it has shown stays.
      location.reload();
    });
    $("search").addEventListener("input", () => { this._model.isListChanged = true; this._drawSoon(); });
    $("banner-action").addEventListener("click", () => this._bannerAction?.());
    document.addEventListener("visibilitychange", () => this._drawSoon());
    setInterval(() => this._tick(), 1000);
  }

  /** Begin, or begin again with another token. */
  async start() {
    clearTimeout(this._again);
    $("forget-token").hidden = !this._api.token;
    if (!await this._loadNode()) return;
    this._early = [];
    this._stream.start();
    await this._loadCaptures();
  }

  /** Load everything again, because events may have been missed. */
  async _reload() {
    this._early ??= [];
    if (await this._loadNode()) await this._loadCaptures();
  }

  /** Whether the node has answered. */
  async _loadNode() {
    this._nodeAt = performance.now();
    try {
      this._node = await this._api.json("/node");
    } catch (error) {
      this._failed(error);
      return false;
    }
    $("open-start").disabled = false;
    $("columns").hidden = false;
    this._panel.draw(this._node);
    if (this._isStreaming && !this._early) this._isFine();
    this._drawSoon();
    return true;
  }

  /** Load every capture, and apply the events that have arrived since the stream was begun. */
  async _loadCaptures() {
    if (this._isLoading) return;
    this._isLoading = true;
    try {
      const { captures } = await this._api.json("/captures?limit=1000");
      this._model.load(captures);
      this._isLoaded = true;
      this._isFine();
      for (const event of this._early ?? []) this._model.apply(event);
      this._early = null;
      this._drawSoon();
    } catch (error) {
      this._failed(error);
    } finally {
      this._isLoading = false;
    }
  }

  /** While there are no events, or none of progress: ask for what runs and what has ended last. */
  async _poll() {
    if (this._isLoading) return;
    this._isLoading = true;
    try {
      const { captures } = await this._api.json("/captures?state=capturing&limit=1000");
      const ids = new Set(captures.map(({ id }) => id));
      for (const { id } of this._model.running()) if (!ids.has(id) && this._stale.size < 20) this._stale.add(id);
      const last = this._isStreaming ? [] : (await this._api.json("/captures?limit=50")).captures;
      for (const state of [...captures, ...last].reverse()) this._model.put(state);
      this._isFine();
      this._drawSoon();
    } catch (error) {
      this._failed(error);
    } finally {
      this._isLoading = false;
    }
  }

  _onEvent(event) {
    if (this._early) {
      this._early.push(event);
      // The list that is still to come knows of the oldest.
      if (this._early.length > MAX_EARLY) this._early.splice(0, MAX_EARLY / 2);
      return;
    }
    this._model.apply(event);
    // The node knows more of it then: whether the file can be fetched, for one.
    if ((event.type === "pcapsvc.capture.done" || event.type === "pcapsvc.capture.stopped") && this._stale.size < 20) this._stale.add(event.subject);
    this._drawSoon();
  }

  _onOpen() {
    const isBack = this._wasLost;
    this._isStreaming = true;
    this._wasLost = false;
    this._state("live", "Live");
    if (isBack) this._reload();
  }

  _onLost(error) {
    this._isStreaming = false;
    this._wasLost = true;
    if (error) this._failed(error);
    else this._state("lost", "Reconnecting…");
  }

  _failed(error) {
    if (error.status === 401) return this._askForToken();
    if (error.status === 403) {
      this._stream.stop();
      this._state("lost", "Not allowed");
      return this._banner(error.message, this._api.token ? "Use another token" : null, () => this._tokenDialog.ask());
    }
    this._state("lost", "Reconnecting…");
    this._banner(`${error.message} Trying again…`);
    if (!this._node) this._again = setTimeout(() => this.start(), 3000);
  }

  _askForToken() {
    const wasRefused = this._api.token !== null;
    this._stream.stop();
    this._api.token = null;
    $("forget-token").hidden = true;
    this._state("lost", "Token needed");
    this._banner("This node shows its captures to those who have its token.", "Enter the token", () => this._tokenDialog.ask());
    this._tokenDialog.ask(wasRefused ? "This node doesn’t accept that token." : null);
  }

  _onStarted(answer) {
    if (answer instanceof ApiError) return this._failed(answer);
    const { captures, problems = [], warnings = [] } = answer;
    toast(captures.length === 1 ? `Capturing on ${captures[0].interface}` : `Started ${plural(captures.length, "capture")}`, "good");
    for (const { path, value, rule } of [...problems, ...warnings].slice(0, 3)) {
      toast(`${path}${value == null ? "" : ` = ${value}`}: ${rule}`, "warn", 15);
    }
    for (const { id } of captures.slice(0, 20)) this._stale.add(id);
    this._refreshStale();
  }

  _onEnded(answer) {
    if (answer instanceof ApiError) return this._failed(answer);
    this._model.put(answer);
    this._stale.add(answer.id);
    this._drawSoon();
  }

  async _download(capture, button) {
    const words = button.querySelector("span");
    const before = words.textContent;
    button.disabled = true;
    setText(words, "Downloading…");
    try {
      const response = await this._api.fetch(`/captures/${encodeURIComponent(capture.id)}/pcap`);
      const address = URL.createObjectURL(await response.blob());
      // What is sent may have another end of its name than what is delivered.
      const [, file] = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "") ?? [];
      el("a", { href: address, download: file ?? `${capture.id}.pcap` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    } catch (error) {
      if (error.status === 401) this._failed(error);
      else toast(error instanceof ApiError ? error.message : "The download was interrupted.", "bad", 12);
      if (error.status === 404 || error.status === 410) this._stale.add(capture.id);
    } finally {
      button.disabled = false;
      setText(words, before);
    }
  }

  /** Once a second. */
  _tick() {
    const now = performance.now();
    if (!this._node || document.hidden) return;
    if (now - this._nodeAt > NODE_MS) {
      // If the list could not be loaded, events are waiting for it.
      if (this._early && this._isStreaming) this._reload();
      else if (this._isLoaded) this._loadNode();
    }
    this._refreshStale();
    const isBlind = !this._isStreaming || (now - this._model.lastProgress > 5000 && this._model.running().length > 0);
    if (this._isLoaded && isBlind && now - (this._polledAt ?? 0) > POLL_MS) {
      this._polledAt = now;
      this._poll();
    }
    this._drawSoon();
  }

  async _refreshStale() {
    if (this._isRefreshing) return;
    this._isRefreshing = true;
    const ids = [...this._stale];
    this._stale.clear();
    try {
      for (const id of ids) await this._refresh(id);
    } catch (error) {
      if (error.status === 401) this._failed(error);
    } finally {
      this._isRefreshing = false;
      this._drawSoon();
    }
  }

  async _refresh(id) {
    try {
      this._model.put(await this._api.json(`/captures/${encodeURIComponent(id)}`));
    } catch (error) {
      if (error.status !== 404) throw error;
      this._model.remove(id);
    }
  }

  /** The node has answered. */
  _isFine() {
    this._banner(null);
    if (this._isStreaming) this._state("live", "Live");
    else if (this._wasLost) this._state("polling", "Every 2 s");
  }

  _state(state, words) {
    setAttribute($("link-state"), "data-state", state);
    setText($("link-text"), words);
  }

  _banner(words, action = null, callback = null) {
    $("banner").hidden = words === null;
    setText($("banner-text"), words ?? "");
    $("banner-action").hidden = action === null;
    setText($("banner-action"), action ?? "");
    this._bannerAction = callback;
  }

  /** Draw in the next frame, and not more often than every DRAW_MS. */
  _drawSoon() {
    if (this._isDrawing || document.hidden) return;
    this._isDrawing = true;
    const draw = () => requestAnimationFrame((now) => {
      this._isDrawing = false;
      this._drawnAt = now;
      this._draw(performance.now());
    });
    const wait = this._drawnAt + DRAW_MS - performance.now();
    if (wait > 0) setTimeout(draw, wait);
    else draw();
  }

  _draw(now) {
    // While the node can't be reached, time stands still: nobody knows how far its captures are.
    const isLive = $("link-state").dataset.state !== "lost";
    if (isLive) this._knownAt = now;
    const then = this._knownAt ?? now;
    const running = this._model.running();
    this._summary.draw(running, this._node, now, isLive);
    if (this._isLoaded && this._model.isListChanged) this._drawLists(running);
    for (const card of this._cards.views.values()) card.draw(then, isLive);
    for (const row of this._rows.views.values()) row.draw();
    if (this._model.isRefusedChanged) {
      this._model.isRefusedChanged = false;
      this._panel.drawRefused(this._model.refused);
    }
  }

  _drawLists(running) {
    this._model.isListChanged = false;
    const words = $("search").value.trim().toLowerCase();
    const ended = this._model.ended();
    const found = words ? ended.filter((capture) => capture.words.includes(words)) : ended;
    this._cards.show(running);
    this._rows.show(found);
    setText($("running-count"), running.length ? number.format(running.length) : "");
    setText($("recent-count"), found.length ? number.format(found.length) : "");
    $("running-empty").hidden = running.length > 0;
    $("recent-table").hidden = found.length === 0;
    $("recent-empty").hidden = found.length > 0;
    setText($("recent-empty"), words ? "No recent capture matches." : "No capture has ended since this node was started.");
  }
}

new Page().start();
