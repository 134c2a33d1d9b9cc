"""
Runs filters on a file, as tcpdump -r does, in a process of its own: the optimizer of libpcap may never end.

It reads the file's path and the filters as JSON, and writes which packets each selects, by the seconds of
their time stamps; or what libpcap says, if it can't be compiled.
"""

from __future__ import annotations

import json
import sys

import pcapy


def _selected(path: str, bpf: str) -> list[int] | str:
    reader = pcapy.open_offline(path)
    try:
        reader.setfilter(bpf)
    except pcapy.PcapError as error:
        return str(error)
    found: list[int] = []
    while (header := reader.next()[0]) is not None:
        found.append(header.getts()[0])
    return found


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump([_selected(request["path"], bpf) for bpf in request["filters"]], sys.stdout)
