"""When the CUDA kernels are chosen, and what the support table says of them; needs neither the kernels nor a GPU."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import inception_kernels as ik
from inception_kernels import _extension, backends, cuda_kernels, kernel_record, source_hash
from inception_kernels.swap import trial
from inception_kernels.swap.runtime import FusedLayer, Parts
from inception_kernels.swap.stamp import Stamp

ROOT = Path(__file__).resolve().parent.parent
DENSE = (2, 8, 9, 9, 16, 3, 3, 1, 1, 1, 1, 1, 1)


def on_cuda(dtype=torch.bfloat16) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 8, 9, 9, dtype=dtype, device="cuda")


@pytest.fixture
def hopper(monkeypatch):
    """An installation with the CUDA kernels and a GPU of sm_90 that none of them has run on."""
    monkeypatch.setattr(_extension, "cuda_available", True)
    monkeypatch.setattr(_extension, "cuda_reason", None)
    monkeypatch.setattr(cuda_kernels, "architecture", lambda device: 90)
    monkeypatch.setattr(cuda_kernels, "_declined_shapes", lambda *_: "")
    monkeypatch.setattr(cuda_kernels, "_trusted", set())


# ---- the predicate


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_extension, "cuda_available", False)
    monkeypatch.setattr(_extension, "cuda_reason", "this installation was built without _C_cuda: nvcc not found")
    for x in (None, on_cuda(), torch.ones(1, 1, 1, 1)):
        assert backends.can_run_cuda(x) == "this installation was built without _C_cuda: nvcc not found"


@pytest.mark.usefixtures("hopper")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_with_a_torch_that_has_no_cuda():
    assert backends.can_run_cuda() == f"torch {torch.__version__} is no CUDA build"


@pytest.mark.usefixtures("hopper")
def test_reasons():
    assert backends.can_run_cuda(on_cuda(), "conv2d_bn_act") is None
    assert backends.can_run_cuda(torch.ones(1, 1, 1, 1), "conv2d_bn_act") == "the input is on cpu, not on a CUDA device"
    assert "float64 runs on the reference" in backends.can_run_cuda(on_cuda(torch.float64), "conv2d_bn_act")
    for operator in ("pointwise_depthwise_conv2d", "label_smoothing_cross_entropy"):
        assert backends.can_run_cuda(on_cuda(), operator) == f"{operator} has no CUDA kernels"


@pytest.mark.usefixtures("hopper")
def test_old_gpus_and_shapes_that_a_kernel_declines(monkeypatch):
    asked = []
    monkeypatch.setattr(cuda_kernels, "_declined_shapes", lambda *call: asked.append(call) or "too large")
    assert backends.can_run_cuda(on_cuda(), "conv2d_bn_act", lambda: DENSE) == "too large"
    assert asked == [("conv2d_bn_act", "bfloat16", DENSE, 90)]
    monkeypatch.setattr(cuda_kernels, "architecture", lambda device: 75)
    reason = backends.can_run_cuda(on_cuda(), "conv2d_bn_act", lambda: DENSE)
    assert reason == "the CUDA kernels need compute capability 8.0, this device has 7.5"


def test_the_driver_is_asked_once_for_each_device(monkeypatch):
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(cuda_kernels, "_architectures", {})
    devices = [torch.device("cuda", index) for index in (0, 1, 0, 1)]
    assert [cuda_kernels.architecture(device) for device in devices] == [90] * 4
    assert asked == devices[:2]


def test_every_operator_describes_its_shapes(monkeypatch):
    described = []

    def choose(operator, x, shapes=None):
        described.append((operator, None if shapes is None else shapes()))
        return "reference"

    monkeypatch.setattr(backends, "choose", choose)
    x = torch.randn(2, 8, 9, 7)
    ik.conv2d_bn_act(x, torch.randn(4, 8, 3, 5), stride=(2, 1), padding=(1, 2), dilation=1)
    ik.separable_conv2d(x, torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1), padding=2, dilation=2)
    ik.asymmetric_pair(x, torch.randn(6, 8, 1, 3), torch.randn(4, 6, 3, 1), padding1=(0, 1))
    assert described == [
        ("conv2d_bn_act", (2, 8, 9, 7, 4, 3, 5, 2, 1, 1, 2, 1, 1)),
        ("separable_conv2d", (2, 8, 9, 7, 4, 3, 3, 1, 1, 2, 2, 2, 2)),
        ("asymmetric_pair", (2, 8, 9, 7, 6, 1, 3, 1, 1, 0, 1, 1, 1, 2, 6, 9, 7, 4, 3, 1, 1, 1, 0, 0, 1, 1)),
    ]


# ---- the automatic choice


@pytest.mark.usefixtures("hopper")
def test_unproven_kernels_run_only_where_they_are_asked_for():
    name, reasons = backends.decide("conv2d_bn_act", on_cuda())
    assert name == "reference"
    assert "no committed run on hardware of sm_90" in reasons["cuda"]
    with ik.use_backend("reference"):
        assert backends.decide("conv2d_bn_act", on_cuda())[0] == "reference"


@pytest.mark.usefixtures("hopper")
def test_trusted_kernels_are_chosen_for_their_dtype_alone():
    cuda_kernels.trust("conv2d_bn_act", torch.bfloat16, torch.device("cuda"))
    assert backends.decide("conv2d_bn_act", on_cuda())[0] == "cuda"
    assert backends.decide("conv2d_bn_act", on_cuda(torch.float16))[0] == "reference"
    assert backends.decide("separable_conv2d", on_cuda())[0] == "reference"


@pytest.fixture
def layer_on_cuda(monkeypatch) -> tuple[FusedLayer, Parts]:
    """One that nothing is packed for."""
    conv = torch.nn.Conv2d(8, 16, 3, padding=1).requires_grad_(False)
    monkeypatch.setattr(FusedLayer, "_build", lambda *_: "prepared")
    monkeypatch.setattr(Stamp, "possible", lambda tensors: True)
    return FusedLayer("conv", "conv2d_bn_act", "none", "none", "relu"), Parts(None, conv, None, (conv,))


@pytest.mark.usefixtures("hopper")
def test_swapped_layers_prepare_their_weights_for_kernels_that_are_chosen(layer_on_cuda):
    fused, parts = layer_on_cuda
    assert fused._prepare(on_cuda(), parts) is None
    cuda_kernels.trust("conv2d_bn_act", torch.bfloat16, torch.device("cuda"))
    assert fused._prepare(on_cuda(), parts).run == "prepared"
    with ik.use_backend("reference"):
        assert fused._prepare(on_cuda(), parts) is None


@pytest.mark.usefixtures("hopper")
def test_kernels_are_asked_about_a_shape_when_it_changes(monkeypatch, layer_on_cuda):
    fused, parts = layer_on_cuda
    cuda_kernels.trust("conv2d_bn_act", torch.bfloat16, torch.device("cuda"))
    asked = []
    monkeypatch.setattr(
        cuda_kernels,
        "_declined_shapes",
        lambda *call: asked.append(call[2][0]) or ("too large" if call[2][0] > 3 else ""),
    )
    with FakeTensorMode():
        images = {n: torch.empty(n, 8, 9, 9, dtype=torch.bfloat16, device="cuda") for n in (2, 3, 4)}
    for n, expected in ((2, "prepared"), (2, "prepared"), (3, "prepared"), (3, "prepared"), (4, None), (3, "prepared")):
        prepared = fused._prepare(images[n], parts)
        assert (prepared and prepared.run) == expected
    assert asked == [2, 3, 4]


def test_what_a_run_on_hardware_proves():
    runs = [
        {"kernel": "conv2d_bn_act.forward.cuda_sm80_bf16", "sm": 90},
        {"kernel": "separable_conv2d.forward.cuda_sm80_rows_fp16", "sm": 80},
        {"kernel": "separable_conv2d.forward.cuda_sm80_tf32", "sm": 80},
        {"kernel": "conv2d_bn_act.backward.cuda_aten", "sm": 90},
    ]
    assert cuda_kernels._proven(runs) == {
        ("conv2d_bn_act", torch.bfloat16, 90),
        ("separable_conv2d", torch.float16, 80),
        ("separable_conv2d", torch.float32, 80),
    }


# ---- the trial that tune makes


@pytest.fixture
def on_trial(monkeypatch):
    """Every layer is on trial, with the CPU's kernels in the place of CUDA's; what was trusted."""
    trusted = []
    monkeypatch.setattr(trial, "_on_trial", lambda *_: True)
    monkeypatch.setitem(backends._predicates, "cuda", lambda *_: None)
    monkeypatch.setattr(cuda_kernels, "trust", lambda *call: trusted.append(call))
    return trusted


@pytest.fixture
def layer():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.BatchNorm2d(16)
    fused = FusedLayer("conv", "conv2d_bn_act", "none", "none", "relu")
    return fused, Parts(None, conv, norm, (conv, norm)), torch.nn.Sequential(conv, norm, torch.nn.ReLU())


def test_a_kernel_that_is_right_is_trusted(on_trial, layer):
    fused, parts, original = layer
    x = torch.randn(2, 8, 9, 9)
    assert trial.passed(fused, parts, x, original)
    assert on_trial == [("conv2d_bn_act", torch.float32, x.device)]
    assert parts.norm.training, "the trial puts the modes back"
    assert parts.norm.num_batches_tracked == 0


@pytest.mark.parametrize("defect", [0.01, float("nan")])
def test_a_kernel_that_is_wrong_is_not(on_trial, layer, monkeypatch, caplog, defect):
    fused, parts, original = layer
    call = FusedLayer.__call__

    def defective(self, x, parts):
        return call(self, x, parts) + (defect if backends.forced() == "cuda" else 0)

    monkeypatch.setattr(FusedLayer, "__call__", defective)
    assert not trial.passed(fused, parts, torch.randn(2, 8, 9, 9), original)
    assert on_trial == []
    assert "the CUDA kernel is off by" in caplog.text


# ---- the table


@pytest.fixture
def checkout(tmp_path):
    """Two kernels, one of which has run: in a benchmark on an H200, and in a correctness run before a change."""
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    names = ("conv2d_bn_act.forward.cuda_sm80_bf16", "conv2d_bn_act.forward.cuda_sm80_fp16")
    calls = "".join(f'count_kernel("{name}");\n' for name in names)
    (tmp_path / "csrc/cuda/k.cu").write_text(calls + 'count_kernel("conv2d_bn_act.backward.cuda_aten");\n')
    results = tmp_path / "benchmarks/results"
    for folder in ("h200", "a100", "cpu"):
        (results / folder).mkdir(parents=True)
    environment = {"device_type": "cuda", "isa": "sm_90", "device": "H200", "source_hash": "another"}
    row = {"environment": 0, "status": "ok", "ran": f"{names[0]} x2, layout.to_contiguous x1"}
    wrong = {"environment": 0, "status": "withheld", "ran": f"{names[1]} x1"}
    (results / "h200/rows.json").write_text(json.dumps({"environments": [environment], "rows": [row, wrong]}))
    hardware = {"sm": 80, "device": "A100", "source_hash": source_hash.current_hashes()["cuda"]}
    rows = [{"status": "right", "kernels": {names[0]: 3}}, {"status": "wrong", "kernels": {names[1]: 1}}]
    (results / "a100/correctness.json").write_text(json.dumps({"hardware": hardware, "rows": rows}))
    host = {"environments": [{**environment, "device_type": "cpu"}], "rows": [{**row, "ran": names[1]}]}
    (results / "cpu/rows.json").write_text(json.dumps(host))
    return tmp_path


def test_marks_come_from_committed_rows(checkout):
    ran, unproven = cuda_kernels.table(checkout)
    assert ran.kernel.endswith("_bf16") and ran.precision == "bf16"
    assert ran.runs == ("A100 (sm_80)", "H200 (sm_90, before later changes)")
    assert unproven.runs == ()
    assert len(cuda_kernels.table(checkout)) == 2, "PyTorch's own gradient is no kernel of ours"
    table = cuda_kernels.markdown(checkout).splitlines()
    assert "bf16, fp16 | yes | bf16: A100 (sm_80); bf16: H200" in table[-1]


def test_a_kernel_that_was_wrong_once_has_no_mark(checkout):
    path = checkout / "benchmarks/results/a100/correctness.json"
    document = json.loads(path.read_text())
    document["rows"].append({"status": "wrong", "kernels": dict.fromkeys(document["rows"][0]["kernels"], 1)})
    path.write_text(json.dumps(document))
    assert cuda_kernels.table(checkout)[0].runs == ("H200 (sm_90, before later changes)",)


def test_every_kernel_of_the_sources_is_in_the_table():
    names = kernel_record.kernel_names(ROOT)
    assert {each.kernel for each in cuda_kernels.table(ROOT)} == {n for n in names if not n.endswith("cuda_aten")}
    assert {each.operator for each in cuda_kernels.table(ROOT)} >= set(cuda_kernels.OPERATORS)
