"""The build: which torch and compilers it finds, what it says where one is missing, what it leaves behind."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from build_backend import build_ext, hooks, ninja_build, sources, toolchain, torch_lookup

ROOT = Path(__file__).resolve().parent.parent
TORCH_FOLDER = Path(torch.__file__).parent

LIBTORCH_NAME = re.compile(
    r"<torch/\S+>|\b(?:aoti_torch|torch)_\w+|\b(?:STD_|STABLE_|AOTI_)?TORCH_[A-Z]\w*|\btorch::(?:\w+::)*\w+"
)
LIBTORCH_NAMES = (ROOT / "tests" / "libtorch_names.txt").read_text().splitlines()[1:]


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(torch_lookup, "_visible_torch", lambda: None)
    monkeypatch.setattr(torch_lookup, "_target_environment_torch", lambda: None)


@pytest.fixture
def only_gxx(monkeypatch, tmp_path):
    """A machine whose PATH has g++ and whose CUDA_HOME is empty."""
    gxx = shutil.which("g++")
    assert gxx is not None
    (tmp_path / "g++").symlink_to(gxx)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


class TestTorchLookup:
    def test_finds_the_torch_of_this_interpreter(self):
        found = torch_lookup.require_torch()
        assert found.folder == TORCH_FOLDER
        assert found.version == torch.__version__
        assert found.cuda == torch.version.cuda
        assert (found.include / "torch" / "csrc" / "stable" / "library.h").exists()

    def test_finds_the_torch_that_build_isolation_hides(self):
        code = (
            "import importlib.util, sys; sys.path.insert(0, '.'); from build_backend import torch_lookup; "
            "assert importlib.util.find_spec('torch') is None; print(torch_lookup.find_torch().folder)"
        )
        done = run_python("-S", "-c", code, PYTHONPATH="")
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == TORCH_FOLDER

    def test_asks_for_no_torch_where_the_target_has_one(self):
        assert hooks.get_requires_for_build_wheel() == []
        assert hooks.get_requires_for_build_editable() == []

    @pytest.mark.usefixtures("no_torch")
    def test_asks_for_torch_where_the_target_has_none(self):
        assert hooks.get_requires_for_build_wheel() == [torch_lookup.REQUIREMENT]

    @pytest.mark.usefixtures("no_torch")
    def test_under_uv_names_the_flag(self, monkeypatch):
        monkeypatch.setenv("UV", "/usr/bin/uv")
        with pytest.raises(SystemExit, match="--no-build-isolation"):
            hooks.get_requires_for_build_wheel()

    @pytest.mark.usefixtures("no_torch")
    def test_pip_under_uv_run_is_not_uv(self, monkeypatch):
        monkeypatch.setenv("UV", "/usr/bin/uv")
        monkeypatch.setattr(sys, "path", [*sys.path, "/tmp/pip-build-env-1/overlay/lib"])
        assert hooks.get_requires_for_build_wheel() == [torch_lookup.REQUIREMENT]

    @pytest.mark.usefixtures("no_torch")
    def test_missing_torch_names_the_fix_before_anything_is_downloaded(self, tmp_path):
        with pytest.raises(SystemExit, match=r"needs PyTorch: pip install 'torch>=2\.11,<2\.16'"):
            hooks.prepare_metadata_for_build_wheel(str(tmp_path))

    @pytest.mark.parametrize("version", ["2.10.1", "2.16.0", "3.0.0a0+git1234"])
    def test_declines_a_torch_of_another_version(self, monkeypatch, tmp_path, version):
        (tmp_path / "version.py").write_text(f"__version__ = {version!r}\n")
        monkeypatch.setattr(torch_lookup, "_visible_torch", lambda: tmp_path)
        with pytest.raises(SystemExit, match=rf"torch 2\.11 to 2\.15, found {version.split('+')[0]}"):
            torch_lookup.find_torch()

    def test_supported_versions_are_those_of_pyproject(self):
        assert f'"{torch_lookup.REQUIREMENT}"' in (ROOT / "pyproject.toml").read_text()


class TestToolchain:
    def test_without_a_compiler_setup_prints_one_sentence(self, tmp_path):
        done = run_python("setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), PATH=str(tmp_path), CXX="")
        assert done.returncode != 0
        last_line = done.stderr.strip().splitlines()[-1]
        assert last_line.startswith("Building inception_kernels needs a C++20 compiler"), done.stderr
        assert "apt-get install g++" in last_line
        assert "Traceback" not in done.stderr

    def test_a_compiler_named_in_cxx_must_exist(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler -O1")
        with pytest.raises(SystemExit, match="no-such-compiler"):
            toolchain.find_cxx()

    def test_without_python_headers(self, monkeypatch, tmp_path):
        monkeypatch.setattr(toolchain, "python_include", lambda: str(tmp_path))
        with pytest.raises(SystemExit, match=r"has no Python\.h.*python3-dev"):
            toolchain.find_cxx()

    def test_old_setuptools(self, monkeypatch):
        monkeypatch.setattr(toolchain.setuptools, "__version__", "65.5.0")
        with pytest.raises(SystemExit, match=r"setuptools 77 or newer, found 65\.5\.0"):
            toolchain.require_setuptools()

    def test_unknown_mode(self, monkeypatch):
        monkeypatch.setenv("IK_BUILD", "gpu")
        with pytest.raises(SystemExit, match="IK_BUILD must be auto, cpu or cuda, but is 'gpu'"):
            toolchain.build_mode()

    @pytest.mark.usefixtures("only_gxx")
    def test_cuda_without_nvcc_fails_and_auto_says_why_not(self, monkeypatch):
        monkeypatch.setenv("IK_BUILD", "cuda")
        with pytest.raises(SystemExit, match="IK_BUILD=cuda needs nvcc"):
            toolchain.require_toolchain()
        monkeypatch.setenv("IK_BUILD", "auto")
        assert toolchain.require_toolchain() == toolchain.Toolchain(["g++"], None, "nvcc not found")

    def test_cuda_without_sources_fails(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build_ext, "ROOT", tmp_path)
        monkeypatch.setenv("IK_BUILD", "cuda")
        with pytest.raises(SystemExit, match=r"csrc/cuda has no \.cu file"):
            build_ext.extensions()

    @pytest.mark.parametrize(
        ("mode", "cuda", "reason"),
        [
            ("auto", None, "torch 2.13.0 is no CUDA build"),
            ("auto", "13.0", None),
            ("cuda", None, None),
            ("cpu", "13.0", "IK_BUILD=cpu"),
        ],
    )
    def test_auto_builds_cuda_only_for_a_torch_that_can_use_it(self, monkeypatch, mode, cuda, reason):
        monkeypatch.setenv("IK_BUILD", mode)
        monkeypatch.setattr(toolchain, "find_nvcc", lambda: "nvcc")
        monkeypatch.setattr(sources, "cuda_sources", lambda root: [sources.Source(Path("csrc/cuda/k.cu"))])
        monkeypatch.setattr(torch_lookup, "find_torch", lambda: torch_lookup.Torch(Path("torch"), "2.13.0", cuda))
        why_not = build_ext.why_not_cuda()
        assert why_not is None if reason is None else why_not.startswith(reason)
        names = [extension.name for extension in build_ext.extensions()]
        assert ("inception_kernels._C_cuda" in names) == (reason is None)

    def test_cpu_looks_for_no_cuda(self, monkeypatch):
        monkeypatch.setenv("IK_BUILD", "cpu")
        assert toolchain.require_toolchain().nvcc is None
        assert [extension.name for extension in build_ext.extensions()] == ["inception_kernels._C"]

    @pytest.mark.parametrize(
        ("archs", "codes"),
        [
            ("", ["sm_80", "compute_80", "sm_90a"]),
            ("9.0a+PTX", ["sm_90a", "compute_90a"]),
            ("8.0 8.6", ["sm_80", "sm_86"]),
        ],
    )
    def test_architectures(self, monkeypatch, archs, codes):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", archs)
        flags = toolchain.cuda_arch_flags(Path("csrc/cuda/k.cu"))
        assert [flag.rpartition("code=")[2] for flag in flags] == codes
        assert toolchain.cuda_codes() == codes

    def test_hopper_instructions_are_compiled_for_hopper_alone(self, monkeypatch):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
        flags = toolchain.cuda_arch_flags(Path("csrc/cuda/k_sm90_bf16.cu"))
        assert flags == ["-gencode=arch=compute_90a,code=sm_90a"]

    def test_architecture_that_is_no_number(self, monkeypatch):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
        with pytest.raises(SystemExit, match="'Hopper'"):
            toolchain.cuda_codes()


class TestSources:
    @pytest.fixture
    def tree(self, tmp_path):
        for name in ("ops.cpp", "common/a.cpp", "cpu/isa.cpp", "cpu/portable/k.cpp", "cpu/avx2/k.cpp"):
            path = tmp_path / "csrc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "csrc/cpu/isa_flags.txt").write_text("portable:\navx2: -mavx2 -mfma  # Haswell\n")
        return tmp_path

    def test_instruction_sets_come_last_with_their_flags(self, tree):
        found = [(str(file.path), file.flags) for file in sources.cpu_sources(tree, x86=True)]
        assert found == [
            ("csrc/common/a.cpp", ()),
            ("csrc/cpu/isa.cpp", ()),
            ("csrc/ops.cpp", ()),
            ("csrc/cpu/portable/k.cpp", ()),
            ("csrc/cpu/avx2/k.cpp", ("-mavx2", "-mfma")),
        ]

    def test_other_machines_build_the_portable_part(self, tree):
        names = [str(file.path) for file in sources.cpu_sources(tree, x86=False)]
        assert "csrc/cpu/portable/k.cpp" in names
        assert "csrc/cpu/avx2/k.cpp" not in names

    def test_cuda_sources_need_a_kernel(self, tree):
        (tree / "csrc/cuda").mkdir()
        (tree / "csrc/cuda/register.cpp").touch()
        assert sources.cuda_sources(tree) == []
        (tree / "csrc/cuda/k.cu").touch()
        assert [file.path.name for file in sources.cuda_sources(tree)] == ["k.cu", "register.cpp", "a.cpp"]

    def test_operators_with_cuda_kernels_are_in_both_extensions(self, tree):
        (tree / "csrc/cuda").mkdir()
        for name in ("cuda/conv.cu", "cuda/conv_sm90.cu", "conv.cpp", "host_only.cpp", "common/parallel_torch.cpp"):
            (tree / "csrc" / name).touch()
        found = [str(file.path) for file in sources.cuda_sources(tree)]
        assert found == ["csrc/cuda/conv.cu", "csrc/cuda/conv_sm90.cu", "csrc/conv.cpp", "csrc/common/a.cpp"]
        assert "csrc/conv.cpp" in [str(file.path) for file in sources.cpu_sources(tree, x86=True)]

    def test_a_line_without_a_colon(self, tree):
        (tree / "csrc/cpu/isa_flags.txt").write_text("avx2 -mavx2\n")
        with pytest.raises(SystemExit, match=r"isa_flags\.txt:1: expected 'folder: flags'"):
            sources.cpu_sources(tree, x86=True)


class TestNinjaBuild:
    @pytest.fixture
    def build(self, tmp_path):
        """A function that builds a source with a header, in a folder whose name has a space."""
        folder = tmp_path / "a b"
        folder.mkdir()
        (folder / "k.h").write_text("inline int value() { return 1; }\n")
        source = folder / "k.cpp"
        source.write_text('#include "k.h"\nextern "C" int k() { return value(); }\n')
        obj, library = folder / "out" / "k.o", folder / "out" / "k.so"
        depfile = obj.with_suffix(".d")
        compile_command = ["g++", "-fPIC", "-MD", "-MF", str(depfile), "-c", str(source), "-o", str(obj)]
        compile_step = ninja_build.Step(compile_command, [source], obj, depfile)
        link_step = ninja_build.Step(["g++", "-shared", str(obj), "-o", str(library)], [obj], library)

        def run() -> tuple[int, Path]:
            ninja_build.build([compile_step], link_step, folder / "out", tmp_path)
            return library.stat().st_mtime_ns, folder

        return run

    def test_rebuilds_after_a_changed_header_only(self, build):
        first, folder = build()
        assert build()[0] == first
        (folder / "k.h").write_text("inline int value() { return 2; }\n")
        assert build()[0] > first

    def test_works_without_ninja(self, build, monkeypatch):
        which = shutil.which
        monkeypatch.setattr(
            shutil, "which", lambda name, path=None: None if name == "ninja" else which(name, path=path)
        )
        first, _ = build()
        assert build()[0] > first

    @pytest.mark.parametrize("ninja", [True, False])
    def test_a_compile_error_ends_in_a_sentence(self, build, monkeypatch, ninja):
        which = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name, path=None: which(name, path=path) if ninja else None)
        _, folder = build()
        (folder / "k.h").write_text("#error broken\n")
        with pytest.raises(SystemExit, match="compiler's messages are above"):
            build()

    @pytest.mark.parametrize("jobs", ["0", "-1", "many"])
    def test_max_jobs_must_be_positive(self, monkeypatch, jobs):
        monkeypatch.setenv("MAX_JOBS", jobs)
        with pytest.raises(SystemExit, match="MAX_JOBS must be a positive number"):
            ninja_build.max_jobs()


class TestExtension:
    def test_import_without_the_extension_warns_once_and_works(self, tmp_path):
        code = """
import sys, warnings
sys.modules["inception_kernels._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import inception_kernels as ik
    import torch
    y = ik.conv2d_bn_act(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    ik.conv2d_bn_act(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
ours = [str(w.message) for w in caught if "inception_kernels" in str(w.message)]
assert len(ours) == 1, ours
assert "reference backend only" in ours[0] and "pip install" in ours[0], ours
assert not ik._extension.available and ik._extension.reason
assert torch.equal(y, torch.full((1, 1, 2, 2), 9.0)), y
"""
        done = run_python("-c", code, PYTHONPATH=str(ROOT), cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    def test_an_older_library_is_told_from_a_missing_one(self, tmp_path):
        """An editable installation: the Python is new, the library was not built again."""
        package = tmp_path / "inception_kernels"
        shutil.copytree(ROOT / "inception_kernels", package, ignore=shutil.ignore_patterns("__pycache__"))
        extension = package / "_extension.py"
        extension.write_text(extension.read_text().replace('"run_program",', '"run_program", "run_backwards",'))
        code = """
import torch, inception_kernels as ik
assert not ik._extension.available
torch.testing.assert_close(ik.conv2d_bn_act(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), torch.full((1, 1, 2, 2), 9.0))
"""
        done = run_python("-c", code, PYTHONPATH=str(tmp_path), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "built from older sources and has no operator run_backwards: build it again" in done.stderr

    def test_the_package_knows_its_operators(self):
        from inception_kernels import _extension

        text = (ROOT / "csrc/ops.cpp").read_text()
        assert set(re.findall(r'm\.def\(\s*"([a-z]\w*)\(', text)) == _extension.OPERATORS

    def test_only_the_stable_abi_is_used(self):
        from inception_kernels import _C

        assert _C.__file__.endswith(".abi3.so")
        nm = subprocess.run(
            ["nm", "-D", "-C", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True
        )
        unstable = [line for line in nm.stdout.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
        assert unstable == []

    def test_sources_use_what_the_oldest_libtorch_has(self):
        """The list may grow by what 2.11 has: the test below tells, in an environment of requirements/oldest.txt."""
        files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")]
        used = {name for path in files for name in LIBTORCH_NAME.findall(path.read_text())}
        assert sorted(used) == sorted(LIBTORCH_NAMES)

    @pytest.mark.parametrize("name", LIBTORCH_NAMES)
    def test_this_libtorch_has_what_the_sources_use(self, name):
        include = torch_lookup.require_torch().include
        if name.startswith("<"):
            assert (include / name[1:-1]).is_file()
            return
        folders = [include / "torch" / "csrc" / part for part in ("stable", "inductor/aoti_torch/c")]
        headers = [path for folder in [*folders, include / "torch" / "headeronly"] for path in folder.rglob("*.h")]
        word = re.compile(rf"\b{name.rpartition('::')[2]}\b")
        assert any(word.search(path.read_text()) for path in headers)

    def test_code_for_one_instruction_set_is_not_linked_into_the_rest(self):
        """Of a function that several objects define the linker keeps one: never one that not every machine can run."""
        isa_flags = sources.read_isa_flags(ROOT / "csrc/cpu/isa_flags.txt")
        defined: dict[str, set[str]] = {folder: set() for folder in ["", *isa_flags]}
        objects = [
            build_ext.object_folder() / f"{file.path}.o" for file in sources.cpu_sources(ROOT, toolchain.is_x86())
        ]
        for path in objects:
            nm = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True)
            functions = {line.split()[2] for line in nm.stdout.splitlines() if line.split()[1] == "W"}
            defined[path.parent.name if path.parent.name in isa_flags else ""] |= functions
        assert any(defined.values())
        for folder, flags in isa_flags.items():
            others = set().union(*(names for other, names in defined.items() if other != folder))
            assert not flags or not defined[folder] & others, folder

    @pytest.mark.slow
    def test_isolated_install_into_a_fresh_environment(self, tmp_path):
        """`pip install .` with build isolation and no nvcc, into an environment that has torch already."""
        fresh = tmp_path / "venv"
        venv.create(fresh, with_pip=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(fresh)}))
        (site / "outer.pth").write_text(f"{TORCH_FOLDER.parent}\n")
        python = str(fresh / "bin" / "python")
        environment = {
            **os.environ,
            "CUDA_HOME": str(tmp_path),
            "PATH": os.pathsep.join((str(fresh / "bin"), "/usr/bin", "/bin")),
        }
        environment.pop("PYTHONPATH", None)
        install = [python, "-m", "pip", "install", "-v", "--no-deps", str(ROOT)]
        done = subprocess.run(
            install, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        output = done.stdout + done.stderr
        summary = [line for line in output.splitlines() if "inception_kernels: built _C (" in line]
        assert len(summary) == 1, output
        assert f"torch {torch.__version__}" in summary[0]
        assert "not _C_cuda:" in summary[0]
        code = "import inception_kernels._C as c; print(c.__file__)"
        used = subprocess.run(
            [python, "-W", "error::RuntimeWarning", "-c", "import torch\n" + code],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert used.returncode == 0, used.stderr
        assert Path(used.stdout.strip()).is_relative_to(site)


# `make test` needs no more than one compiler; `.ci/run` installs this one.
ARM64_COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(
    shutil.which(ARM64_COMPILER) is None, reason=f"needs {ARM64_COMPILER} (apt-get package g++-aarch64-linux-gnu)"
)
def test_cpu_sources_compile_for_arm64():
    """All but the module's initialisation, which needs Python's headers for that machine."""
    flags = [*build_ext.CXX_FLAGS, *build_ext.DEFINES, "-Icsrc", "-isystem", str(TORCH_FOLDER / "include")]
    files = [source.path for source in sources.cpu_sources(ROOT, x86=False) if source.path.name != "ops.cpp"]
    assert len(files) > 30

    def compile_one(file: Path) -> str:
        command = [ARM64_COMPILER, *flags, "-fsyntax-only", "-Werror", str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        return "" if done.returncode == 0 else f"{file}:\n{done.stderr[-3000:]}"

    with ThreadPoolExecutor(2) as pool:
        failed = [message for message in pool.map(compile_one, files) if message]
    assert not failed, "\n".join(failed)
