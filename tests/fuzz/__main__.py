"""
Fuzz: C{python -m tests.fuzz TARGET|all --seconds N}.

Each target runs in a process of its own, because atheris (libFuzzer) exits the process it runs in. The exit
status is 0 if nothing was found. An input that makes a target fail is kept in a file;
C{python -m tests.fuzz TARGET FILE...} runs it again, without atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A process that exceeds its time by this much is stuck.
_GRACE_SECONDS = 60
_ONE_INPUT_SECONDS = 10
_RSS_MIB = 2048
#: The targets. They can't be imported here, before they are instrumented.
NAMES = ("request", "address", "settings")
_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing.")
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("inputs", nargs="*", type=Path, help="inputs to run once, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz each target (default: 60)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = NAMES if given.target == "all" else (given.target,)
    if given.seconds < 1:
        # To libFuzzer, 0 means no limit.
        parser.error("--seconds must be 1 or more")
    if given.inside is not None:
        _fuzz(given.target, given.inside, given.seconds)
        return 0
    if given.inputs:
        _run(names, given.inputs)
        return 0
    # All are run, whatever is found, one on each processor.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        finished = list(threads.map(lambda name: _fuzz_apart(name, given.seconds), names))
    found = [name for name, is_fine in zip(names, finished, strict=True) if not is_fine]
    print(f"fuzz: {', '.join(found)} failed" if found else "fuzz: nothing found")
    return 1 if found else 0


def _run(names: tuple[str, ...], inputs: list[Path]) -> None:
    from tests.fuzz.targets import TARGETS

    for name in names:
        for path in inputs:
            accepted = TARGETS[name].run(path.read_bytes())
            print(f"{name}: {path}: {'accepted' if accepted else 'rejected'}")


def _fuzz_apart(name: str, seconds: int) -> bool:
    """Fuzz in a process of its own. Return whether it finished and found nothing."""
    print(f"== fuzz: {name}, for {seconds} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="pcapsvc-fuzz-") as temporary:
        inside = Path(temporary)
        (inside / "work").mkdir()
        command = [sys.executable, "-m", "tests.fuzz", name, f"--seconds={seconds}", f"--inside={inside}"]
        try:
            status = subprocess.run(
                command,
                # Relative paths in an input refer to this directory, not to our files.
                cwd=inside / "work",
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdin=subprocess.DEVNULL,
                timeout=seconds + _GRACE_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        kept = [_keep(name, artifact) for artifact in sorted((inside / "found").glob("*"))]
    for path in kept:
        print(f"fuzz: {name}: to run it again: python -m tests.fuzz {name} {path}")
    if status is None:
        print(f"fuzz: {name}: did not finish")
    return status == 0 and not kept


def _keep(name: str, artifact: Path) -> Path:
    content = artifact.read_bytes()
    kept = Path(tempfile.gettempdir()) / f"pcapsvc-fuzz-{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    kept.write_bytes(content)
    return kept


def _fuzz(name: str, inside: Path, seconds: int) -> None:
    """Fuzz one target, and exit the process."""
    try:
        import atheris
    except ImportError as error:
        sys.exit(f"fuzz: atheris is not installed; the extra 'fuzz' installs it ({error})")

    with atheris.instrument_imports(include=["pcapsvc.core", "pcapsvc.settings"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus, found, words = inside / "corpus", inside / "found", inside / "words"
    corpus.mkdir()
    found.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    # https://llvm.org/docs/LibFuzzer.html#dictionaries
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), "ascii")
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={_ONE_INPUT_SECONDS}",
            f"-rss_limit_mb={_RSS_MIB}",
            f"-max_len={target.max_bytes}",
            f"-dict={words}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            "-verbosity=0",
            str(corpus),
        ],
        target.run,
    )
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word.encode()
    )


if __name__ == "__main__":
    sys.exit(main())
