"""Scoring in the middle of a run."""

import pytest

from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.runs.evaluation import metric_batch


@pytest.mark.parametrize("resolution,batch_gpu,expected", [(32, 8, 64), (256, 8, 64), (512, 8, 16), (1024, 4, 4),
                                                           (1024, 16, 16), (32, 128, 128)])
def test_metrics_generate_many_images_at_once_as_far_as_memory_goes(resolution, batch_gpu, expected):
    options = Options(cfg="auto", method="stylegan2", batch=batch_gpu, batch_gpu=batch_gpu, mbstd_group=4)
    assert metric_batch(resolve(options, DatasetConfig(path="d", resolution=resolution), device="cpu")) == expected
