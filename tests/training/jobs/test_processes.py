"""Several processes do what one does: gradients, scores."""

import pytest

import forking
from benchmarks.processes import run_sizes
from training.jobs import launch


@pytest.mark.usefixtures("small_grids", "warm")
def test_gradients_and_scores_are_those_of_one_process(tiny_dataset, tiny_net, tmp_path, monkeypatch):
    forking.fork_ranks(launch, monkeypatch.setattr)
    options = ["--method=glead+ggdr", "--aug=ada", "--batch-gpu=2"]
    one, two, four = run_sizes(str(tiny_dataset), str(tmp_path), sizes=[1, 2, 4], options=options, iterations=0,
                               detector=str(tiny_net))
    assert one["gradients"] == two["gradients"] == four["gradients"] > 50
    assert two["largest_gradient_difference"] < 1e-5 and four["largest_gradient_difference"] < 1e-5
    for row in (two, four):
        assert row["scores"] == pytest.approx(one["scores"], rel=1e-5)


@pytest.mark.usefixtures("small_grids", "warm")
@pytest.mark.parametrize("method", [
    "stylegan2+wgan-gp+unet+zcr+latent+fsmr+cross-scale+contrad+pa",
    "glead+relativistic+centring+ar+masked+through-g+g-features+edited+ada-lambda",
])
def test_gradients_of_rivals_are_those_of_one_process(method, tiny_dataset, tmp_path, monkeypatch):
    forking.fork_ranks(launch, monkeypatch.setattr)
    options = [f"--method={method}", "--reg_loss_fake=mse", "--aug=ada", "--batch-gpu=4"]
    one, two = run_sizes(str(tiny_dataset), str(tmp_path), sizes=[1, 2], options=options, iterations=0)
    assert one["gradients"] == two["gradients"] > 50 and two["largest_gradient_difference"] < 1e-5
