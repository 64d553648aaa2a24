import math
import platform
import types

import pytest
import torch

import miniformer
from miniformer.config.train_settings import HardwareSettings
from miniformer.training.callbacks import monitor
from miniformer.training.tuning import hardware
from miniformer.training.tuning.hardware import has_fast_bf16, peak_flops

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_measured_yet(monkeypatch):
    monkeypatch.setattr(hardware, "_peak_flops_cache", {})


@pytest.mark.catches("a_product_is_half_the_operations")
def test_peak_flops_times_matrix_products(monkeypatch):
    """A machine of 2 GFLOP/s in products of 256 x 256, and of 1 GFLOP/s in others."""
    now, before = [50.0], torch.get_rng_state()

    def mm(a, b):
        assert a.shape == b.shape
        assert a.std() > 0.1, "products of zeros are faster on some machines"
        size = len(a)
        now[0] += (size * size * (2 * size - 1) + size * size) / (2e9 if size == 256 else 1e9)
        return a

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hardware, "matmul", lambda a, b: None if a.eq(1).all() else mm(a, b))
    assert peak_flops(CPU, torch.float32) == pytest.approx(2e9, rel=1e-6)
    # Four each of 128, 256 and 512, at 4.2, 16.8 and 268 ms; the last do not go into 0.15 s.
    assert now[0] - 50.0 == pytest.approx(4 * 0.0041943 + 4 * 0.0167772, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before)


def test_peak_flops_of_this_machine_is_finite():
    """With real products, clock and generator, whose speed is not checked."""
    before = torch.get_rng_state()
    assert math.isfinite(peak_flops(CPU, torch.float32))
    assert torch.equal(torch.get_rng_state(), before)


def test_peak_flops_is_the_best_of_several_runs(monkeypatch):
    """1, 2 and 4 ns per operation at the three sizes; first products take three times as long."""
    per_operation = {128: 4e-9, 256: 1e-9, 512: 2e-9}
    timed = []

    def seconds(a, b):
        size = len(a)
        assert a.dtype == b.dtype == torch.float32
        timed.append(size)
        return 2 * size**3 * per_operation[size] * (3 if timed.count(size) == 1 else 1)

    monkeypatch.setattr(hardware, "_MATRIX_SIZES", tuple(per_operation))
    monkeypatch.setattr(hardware, "_BENCHMARK_SECONDS", 1e9)
    monkeypatch.setattr(hardware, "_time_matmul", seconds)
    assert peak_flops(CPU, torch.float32) == pytest.approx(1e9)
    assert peak_flops(CPU, torch.float16) == pytest.approx(1e9)  # never computed on a CPU
    many = len(timed)
    assert peak_flops(CPU, torch.float32) == pytest.approx(1e9)
    assert len(timed) == many  # cached
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    peak_flops(CPU, torch.float32)
    assert len(timed) == 2 * many  # another number of threads is benchmarked separately


def test_peak_flops_benchmark_of_a_slow_machine_is_short(monkeypatch):
    """At a million operations a second, a product of 256 x 256 takes half a minute."""
    timed = []
    monkeypatch.setattr(
        hardware, "_time_matmul", lambda a, b: timed.append(len(a)) or 2 * len(a) ** 3 / 1e6
    )
    assert peak_flops(CPU, torch.float32) == pytest.approx(1e6)
    assert timed == [128]


def test_peak_flops_excludes_the_first_call(monkeypatch):
    """As on a GPU: the first product of a process takes longer than the time of the benchmark."""
    now, product, done = [0.0], torch.mm, []

    def mm(a, b):
        now[0] += 2 * len(a) ** 3 / 1e12 if done else 3.0
        done.append(len(a))
        return product(a, b)

    monkeypatch.setattr(hardware, "_MATRIX_SIZES", (128, 256, 512))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hardware, "matmul", mm)
    assert peak_flops(CPU, torch.float32) == pytest.approx(1e12)
    assert 512 in done


def test_peak_flops_ignores_autocast(monkeypatch):
    dtypes = set()
    monkeypatch.setattr(hardware, "_MATRIX_SIZES", (128,))
    monkeypatch.setattr(hardware, "_time_matmul", lambda a, b: dtypes.add((a @ b).dtype) or 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        peak_flops(CPU, torch.float32)
    assert dtypes == {torch.float32}


@pytest.mark.catches("bfloat16_is_taken_wherever_it_exists")
@pytest.mark.parametrize(
    ("avx", "amx", "speedup", "fast"),
    [
        (True, False, 1.3, True),
        (False, True, 2.0, True),
        (True, True, 1.1, False),  # it has the instructions, and gains nothing
        (False, False, 5.0, False),  # emulated
    ],
)
def test_fast_bf16_on_cpu(monkeypatch, avx, amx, speedup, fast):
    speeds = {torch.float32: 1e9, torch.bfloat16: speedup * 1e9}
    monkeypatch.setattr(hardware, "peak_flops", lambda device, dtype: speeds[dtype])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_fast_bf16("cpu") is fast


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu avx512_bf16 sse", True), ("amx_tile", True), ("avx512f", False), (None, False)],
)
def test_fast_bf16_reads_cpu_flags(monkeypatch, tmp_path, flags, fast):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(hardware, "peak_flops", lambda device, dtype: float(dtype.itemsize == 2))
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: amx_tile\nflags\t\t: {flags}\n")
    read = hardware.cpu_flags
    monkeypatch.setattr(hardware, "cpu_flags", lambda: read(file))
    assert has_fast_bf16("cpu") is fast


def test_fast_bf16_on_other_devices(monkeypatch):
    arguments = []

    def supported(including_emulation=True):
        arguments.append(including_emulation)
        return including_emulation  # such as a card that has it in software only

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not has_fast_bf16("cuda")
    assert arguments == [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert has_fast_bf16("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_fast_bf16("cuda")
    assert not has_fast_bf16("mps")


@pytest.mark.parametrize(
    ("devices", "more", "peak"), [(1, "", "1,250"), (3, ", 3 processes", "3,750")]
)
def test_monitor_names_the_machine_and_its_peak(monkeypatch, tmp_path, devices, more, peak):
    monkeypatch.setattr(platform, "processor", lambda: "abacus")
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(monitor, "peak_flops", lambda device, dtype: 1.25e12)
    run = types.SimpleNamespace(
        device_type="cpu", precision="bf16", hardware=HardwareSettings(devices=devices),
        model=torch.nn.Linear(2, 2),
    )  # fmt: skip
    monitored = monitor.RunMonitor(run, None, tmp_path, is_global_zero=False)
    assert monitored.system_info() == {
        "device": f"cpu (abacus), 7 threads{more}",
        "measured peak": f"{peak} GFLOP/s in bf16",
        "versions": f"Miniformer {miniformer.__version__}, torch {torch.__version__}, "
        "Python 3.99.1",
    }


@pytest.mark.catches("threads_have_no_effect")
def test_threads_are_set_for_the_run_and_restored():
    before = torch.get_num_threads()
    with hardware.cpu_threads(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with hardware.cpu_threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.catches("limits_of_a_container_are_ignored")
@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1.5), ("max 100000", 64), ("", 64), (None, 64)]
)
def test_available_cores_are_those_of_the_container(text, cores, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert hardware.available_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(
    ("threads", "load", "reason"),
    [
        (4, 0.2, "torch's default, for 4 cores"),
        (4, 2.8, "torch's default, for 4 cores; other processes use 2.8 of them; --threads 1 may "
                 "be faster"),
        (4, 90.0, "torch's default, for 4 cores; other processes use 4.0 of them; --threads 1 may "
                  "be faster"),
        (64, 0.0, "torch's default, for 4 cores; --threads 4 may be faster"),
    ],
)  # fmt: skip
def test_reason_of_threads_names_a_better_number(threads, load, reason, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "available_cores", lambda: 4.0)
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 9, 9), raising=False)
    assert hardware.describe_threads(threads) == reason


def test_reason_of_threads_of_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hardware.describe_threads(3) == "of OMP_NUM_THREADS"
