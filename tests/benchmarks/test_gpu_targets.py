"""The targets of the benchmark on a card have the published sizes."""

from __future__ import annotations

from gpu_targets import deepseek, llama

D, VOCABULARY = 4096, 128256
LLAMA_LAYER = 2 * D * D + 2 * D * 1024 + 3 * D * 14336 + 2 * D
LLAMA_REST = 2 * VOCABULARY * D + D

W = 2048
ATTENTION = W * 16 * 192 + W * 576 + 512 + 512 * 16 * 256 + 16 * 128 * W
MIXTURE = W * 64 + 3 * 64 * W * 1408 + 3 * W * 2 * 1408


def parameters(target):
    return sum(parameter.numel() for parameter in target.model().parameters())


def test_llama_has_the_layers_of_llama_3_8b():
    assert parameters(llama(layers=3)) == 3 * LLAMA_LAYER + LLAMA_REST
    assert round((32 * LLAMA_LAYER + LLAMA_REST) / 1e9, 2) == 8.03


def test_deepseek_has_the_layers_of_the_16b_model():
    dense, mixture = (ATTENTION + 2 * W + feed_forward for feed_forward in (3 * W * 10944, MIXTURE))
    rest = 2 * 102400 * W + W
    assert parameters(deepseek(layers=3)) == dense + 2 * mixture + rest
    assert round((dense + 26 * mixture + rest) / 1e9, 1) == 15.7
