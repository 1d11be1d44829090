"""Figures of simulated devices: the files that are shipped, and what a file may not say."""

import dataclasses
from importlib.resources import files

import pytest

from actune.device_spec import device_names, load_device_spec, parse_device_spec
from actune.errors import UsageError

H100 = (files("actune") / "devices" / "h100.toml").read_text()


def test_the_devices_that_there_are():
    assert device_names() == ("a100", "b200", "h100", "h200", "mi300x", "tiny")


@pytest.mark.parametrize("name", device_names())
def test_each_file_is_sound(name):
    spec = load_device_spec(name)
    assert spec.name == name
    rates = spec.flops_per_s
    assert rates.float32 <= rates.tf32 <= rates.bfloat16 == rates.float16
    assert rates.float8 is None or rates.float8 == pytest.approx(2 * rates.float16, rel=1e-3)


def test_datasheet_figures_of_the_h100():
    """NVIDIA's datasheet, SXM: 1,979 TFLOPS in bfloat16 with sparsity, which doubles it; 3.35 TB/s; 900 GB/s NVLink."""
    spec = load_device_spec("h100")
    assert spec.flops_per_s.bfloat16 == pytest.approx(1979e12 / 2, rel=1e-3)
    assert spec.flops_per_s.tf32 == pytest.approx(989e12 / 2, rel=1e-3)
    assert spec.bandwidth_bytes_per_s == 3.35e12
    assert spec.interconnect_bytes_per_s == 900e9 / 2
    assert 79 * 2**30 < spec.total_bytes < 80e9 * 1.0737


def test_an_unknown_device_is_told_which_there_are():
    with pytest.raises(UsageError, match=r"'sim:h1000'.*Did you mean 'sim:h100'\?.*sim:a100, sim:b200"):
        load_device_spec("h1000")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("schema = 1", "schema = 2", "schema: 2 is not a version"),
        ("launch_s", "launch", r"unknown key 'launch'\. Did you mean 'launch_s'\?"),
        ("compute_efficiency = 0.70", "compute_efficiency = 1.7", r"compute_efficiency: 1\.7 is no share"),
        ("outside_bytes = 545_259_520", "outside_bytes = 545_259_520_000", "outside_bytes: 545259520000 is outside"),
        ("float32 = 66.9e12", "float32 = nan", r"flops_per_s\.float32: nan is no positive number"),
        ("launch_s = 3e-6", "launch_s = 0.0", r"launch_s: 0\.0 is no positive number"),
        ('kernels = "cuda"', 'kernels = "metal"', "kernels"),
        ("kernels = ", "large_page_bytes = 1000\nkernels = ", "large_page_bytes: 1000 is no page. .* multiple of 512"),
    ],
)
def test_what_a_file_may_not_say(before, after, message):
    assert before in H100
    with pytest.raises(UsageError, match=message):
        parse_device_spec("mine", H100.replace(before, after, 1))


def test_figures_without_a_source_are_none():
    with pytest.raises(ValueError, match="sources"):
        dataclasses.replace(load_device_spec("h100"), sources=())


def test_pages():
    """Those of CUDACachingAllocator.cpp, but where a device is too small for them."""
    for name in device_names():
        spec = load_device_spec(name)
        assert spec.expandable_segments
        if name != "tiny":
            assert (spec.small_page_bytes, spec.large_page_bytes) == (2 * 2**20, 20 * 2**20)
        assert spec.large_page_bytes < spec.total_bytes / 1000
