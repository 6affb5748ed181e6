"""The denoiser is the posterior mean, and sampling ends near the image set, nearer with more steps."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from examples.imaging import denoiser, shapes

RESOLUTION = 32


@pytest.fixture(scope="module")
def subject() -> denoiser.Denoiser:
    return denoiser.Denoiser(RESOLUTION, 4)


def distances(subject: denoiser.Denoiser, samples: npt.NDArray[np.float32]) -> list[float]:
    """Root mean square difference of each sample from the nearest picture of the set."""
    flat = samples.reshape(samples.shape[0], -1)
    return [min(float(np.sqrt(np.mean((sample - picture) ** 2))) for picture in subject.pictures) for sample in flat]


def test_pictures_differ_and_fill_the_range_when_drawn(subject: denoiser.Denoiser) -> None:
    pictures = subject.pictures

    assert pictures.shape == (shapes.PICTURES, 3 * RESOLUTION * RESOLUTION)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    for first, second in itertools.combinations(pictures, 2):
        assert np.abs(first - second).max() > 0.1


def test_pictures_are_the_same_scene_when_drawn_at_another_resolution(subject: denoiser.Denoiser) -> None:
    larger = denoiser.Denoiser(2 * RESOLUTION, 1).pictures.reshape(-1, 3, RESOLUTION, 2, RESOLUTION, 2)
    shrunk = larger.mean(axis=(3, 5)).reshape(shapes.PICTURES, -1)

    assert np.abs(shrunk - subject.pictures).mean() < 0.03


def test_draw_set_refuses_when_the_array_has_another_shape() -> None:
    with pytest.raises(ValueError, match="need 64"):
        shapes.draw_set(np.empty((1, 3, 8, 8), dtype=np.float32))


def test_denoise_gives_the_mean_of_the_set_when_noise_is_everything(subject: denoiser.Denoiser) -> None:
    noisy = subject.pictures[:2].copy()

    assert np.allclose(subject.denoise(noisy, 1e6), subject.pictures.mean(axis=0), atol=1e-3)


def test_denoise_gives_the_picture_back_when_noise_is_small(subject: denoiser.Denoiser) -> None:
    noise = np.random.default_rng(2).standard_normal(subject.pictures[:3].shape, dtype=np.float32)
    noisy = subject.pictures[:3] + np.float32(0.2) * noise

    assert np.allclose(subject.denoise(noisy, 0.2), subject.pictures[:3], atol=1e-4)


def test_denoise_is_the_posterior_mean_when_computed_by_the_definition(subject: denoiser.Denoiser) -> None:
    sigma = 20.0
    noisy = np.random.default_rng(3).standard_normal((1, subject.pictures.shape[1]), dtype=np.float32)
    logs = np.array(
        [-np.sum((noisy[0] - picture).astype(np.float64) ** 2) / (2 * sigma**2) for picture in subject.pictures]
    )
    weights = np.exp(logs - logs.max())
    expected = (weights[:, None] * subject.pictures).sum(axis=0) / weights.sum()

    assert np.allclose(subject.denoise(noisy, sigma)[0], expected, atol=1e-3)


def test_error_falls_when_sampling_takes_more_steps(subject: denoiser.Denoiser) -> None:
    errors = []
    for steps in (4, 6, 8, 12):
        samples = subject.sample(np.random.default_rng(4), steps)
        assert samples is not None
        errors.append(max(distances(subject, samples)))

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert errors[0] > 0.1


def test_samples_are_different_pictures_when_the_noise_differs(subject: denoiser.Denoiser) -> None:
    nearest = set()
    for seed in range(8):
        samples = subject.sample(np.random.default_rng(seed), 12)
        assert samples is not None
        for sample in samples.reshape(samples.shape[0], -1):
            nearest.add(int(np.argmin(((subject.pictures - sample) ** 2).sum(axis=1))))

    assert len(nearest) > 8


def test_sample_gives_up_when_interrupted_between_steps(subject: denoiser.Denoiser) -> None:
    answers = iter([False, False, True])

    assert subject.sample(np.random.default_rng(5), 12, lambda: next(answers)) is None


@pytest.mark.parametrize(("resolution", "steps"), [(0, 1), (1, 0)])
def test_noise_levels_refuse_when_there_is_nothing_to_do(resolution: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        denoiser.noise_levels(resolution, steps)


def test_noise_levels_halve_when_stepped() -> None:
    assert denoiser.noise_levels(10, 2) == [6.0, 3.0, 1.5]


@pytest.mark.parametrize(("resolution", "batch"), [(1, 1), (8, 0)])
def test_denoiser_refuses_when_a_size_is_out_of_range(resolution: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        denoiser.Denoiser(resolution, batch)


def test_to_pixels_clips_when_values_are_outside() -> None:
    image = np.array([[[-2.0, -1.0]], [[0.0, 1.0]], [[2.0, 0.5]]], dtype=np.float32)

    assert denoiser.to_pixels(image).tolist() == [[[0, 128, 255], [0, 255, 191]]]
