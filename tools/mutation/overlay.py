"""A copy of the mutated sources in front of the real ones, as far as the compiler accepts the mutations."""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import host_cuda

from tools.mutation.sites import Site, apply_sites

HERE = Path(__file__).parent
_ERROR = re.compile(r"^(\S+?):(\d+):\d+: (?:fatal )?error: ", re.M)
_NUMBER = re.compile(r"\b(?:Plus|Sign|Always|Never|increment|zero)<(\d+)>")  # of mutant.h, in a message of the compiler
_ANY_LINE = re.compile(r"(\S+?):(\d+)[:,]")


@dataclass
class Overlay:
    """`sites` by number; those that do not compile are dropped."""

    folder: Path
    sites: dict[int, Site]
    dropped: list[Site] = field(default_factory=list)

    def prepare(self, kernels: Sequence[Path]) -> None:
        """Writes the sources and takes out what the compiler refuses, until it accepts the rest."""
        self._drop_known()
        self._write()
        host_cuda.options = self._options()
        while errors := self._errors(kernels):
            kernels = list(errors)
            messages = "\n".join(errors.values())
            numbers = self._named(messages) or self._on_lines(_ERROR, messages) or self._on_lines(_ANY_LINE, messages)
            if not numbers:
                raise RuntimeError(messages)
            self.dropped += [self.sites.pop(number) for number in sorted(numbers)]
            self._write()
            self._record.write_text("\n".join(sorted(site.key for site in self.dropped)))

    @property
    def _record(self) -> Path:
        return self.folder / "refused.txt"

    def _drop_known(self) -> None:
        """What an earlier run has found not to compile."""
        known = set(self._record.read_text().splitlines()) if self._record.exists() else set()
        for number in [number for number, site in self.sites.items() if site.key in known]:
            self.dropped.append(self.sites.pop(number))

    def _write(self) -> None:
        for name in {site.file for site in [*self.sites.values(), *self.dropped]}:
            mine = [(number, site) for number, site in self.sites.items() if site.file == name]
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = apply_sites(host_cuda.CSRC / name, mine)
            if not target.exists() or target.read_text() != text:
                target.write_text(text)

    def _options(self) -> host_cuda.Options:
        flags = ("-include", str(HERE / "mutant.h"), "-Werror=vla")  # sizes of arrays are no place for mutants
        return host_cuda.Options(self.folder, flags, (HERE / "mutant.cpp",), always_checked=True)

    def _errors(self, kernels: Sequence[Path]) -> dict[Path, str]:
        """What the compiler says of those that it refuses."""

        def errors_of(kernel: Path) -> str:
            command = [*host_cuda.compiler(), *host_cuda.kernel_flags(checked=False), "-O0", "-fsyntax-only"]
            call = [*command, "-fmax-errors=0", str(host_cuda.in_front(kernel))]
            result = subprocess.run(call, capture_output=True, text=True)
            return result.stderr if result.returncode else ""

        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return {kernel: text for kernel, text in zip(kernels, pool.map(errors_of, kernels), strict=True) if text}

    def _named(self, messages: str) -> set[int]:
        """Sites whose operands are of a type that they do not exist for."""
        errors = "\n".join(line for line in messages.splitlines() if " error: " in line)
        return {int(number) for number in _NUMBER.findall(errors)} & self.sites.keys()

    def _on_lines(self, pattern: re.Pattern[str], messages: str) -> set[int]:
        """All sites on lines where the compiler stumbled, as over a constant that no longer is one."""
        bad = set()
        for match in pattern.finditer(messages):
            path = Path(match[1])
            if path.is_relative_to(self.folder):
                bad.add((str(path.relative_to(self.folder)), int(match[2])))
        return {number for number, site in self.sites.items() if (site.file, site.line) in bad}
