"""What methods cost."""

import dataclasses

import torch

from training.jobs import cost


def test_multiply_accumulates_are_counted():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert cost._count_flop(lambda: conv(torch.zeros(1, 3, 8, 8))) == 2 * 4 * 3 * 9 * 64


def test_costs_of_methods(monkeypatch):
    monkeypatch.setattr(cost, "_MIN_SEC", 0)
    configs = [cost.configure(method, cfg="auto", resolution=16, batch=2, device="cpu")
               for method in ("stylegan2", "glead", "pa+stylegan2")]
    plain, glead, pa = (cost.measure(dataclasses.replace(c, G=dataclasses.replace(c.G, channel_max=16),
                                                     D=dataclasses.replace(c.D, channel_max=16))) for c in configs)
    assert plain.G_params == glead.G_params and plain.D_params < glead.D_params     # the decoder and its heads
    assert plain.G_gmac == glead.G_gmac > 0 and plain.D_gmac < glead.D_gmac
    assert min(plain.G_ms, plain.D_ms) > 0 and plain.memory_gb is None and glead.step_ms > glead.D_ms
    assert pa.method == "stylegan2+pa" and plain.D_params < pa.D_params     # two more channels of its input
    text = cost.format_costs([plain, glead])
    assert "over stylegan2" in text and "Published: GGDR (ECCV 2022), costs" in text and "4.87" in text
