"""Build both extensions in place with this interpreter's torch; ninja compiles only what changed."""

from __future__ import annotations

import os
import subprocess
import sys

from tools.gpu.options import ROOT, Options, parse


def main(options: Options) -> int:
    environment = dict(os.environ)
    command = [sys.executable, "setup.py", "build_ext"]
    if options.rehearse:  # whoever uses the checkout meanwhile keeps the extensions they have
        command += ["--build-lib", str(options.output / "lib")]
    else:
        command += ["--inplace"]
        environment.setdefault("IK_BUILD", "cuda")
        environment.setdefault("TORCH_CUDA_ARCH_LIST", _architectures())
    print(" ".join(command), flush=True)
    code = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode
    if code:
        options.write("the build failed")
        return code
    reasons = _available()
    built = [name for name, reason in reasons.items() if reason is None]
    options.write(f"built: {', '.join(built)}", backends=reasons)
    missing = None if options.rehearse else reasons["cuda"]
    if missing is not None:
        print(f"the CUDA kernels do not load: {missing}")
    return 0 if missing is None else 1


def _architectures() -> str:
    """This GPU's kernels alone, with those of sm_80 that it runs as well."""
    import torch

    major, _ = torch.cuda.get_device_capability()
    return "8.0;9.0a" if major == 9 else "8.0+PTX"


def _available() -> dict[str, str | None]:
    from inception_kernels import backends

    return backends.available()


if __name__ == "__main__":
    sys.exit(main(parse()))
