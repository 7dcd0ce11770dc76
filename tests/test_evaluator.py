"""Fine-tuning and evaluation on the real digits, with an untrained small model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of
from local_vits import cut
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from objectives.data.loaders import Data
from objectives.dense_model import DenseModel, load_dense
from objectives.error import evaluate, load_answers, predict, save_answers
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.runtime.device import resolve_device
from objectives.training import finetune as finetune_module
from objectives.training.batch import labelled, taught
from objectives.training.config import FinetuneConfig
from objectives.training.finetune import finetune
from spaces.allocation import Allocation
from spaces.errors import CheckpointError, ConfigError, DataError, DivergedError
from spaces.factors import fingerprint
from spaces.models.create import create_model, preprocessing


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """With timm's own weights, in place of the one for recipes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    return evaluator_of(create_model(MODEL), folder, data=DATA, finetune=FinetuneConfig(steps=4, lr=5e-4))


def half(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[len(site.choices) // 2])


def test_the_identity_scores_as_the_dense_model(evaluator: Evaluator) -> None:
    score = evaluator.evaluate(evaluator.dense.space.identity(), seed=0)
    labels = torch.cat([labels for _, labels in evaluator.dense.data.labelled_calibration()])
    with torch.inference_mode():
        answers = torch.cat([evaluator.dense.model.eval()(images) for images in evaluator.dense.data.calibration()])
    assert score.error_before == int((answers.argmax(-1) != labels).sum()) / 256
    assert score.kl_before == pytest.approx(0, abs=1e-7)
    assert (score.costs["macs"], score.costs["params"]) == (
        evaluator.dense.costs.dense["macs"],
        evaluator.dense.costs.dense["params"],
    )


def test_the_same_seed_gives_the_same_score(evaluator: Evaluator, tmp_path: Path) -> None:
    scores = [evaluator.evaluate(half(evaluator), seed, weights=tmp_path / f"{i}") for i, seed in enumerate((0, 0, 1))]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() != (tmp_path / "2").read_bytes()
    assert scores[0].error == scores[1].error
    assert scores[0].kl == scores[1].kl != scores[2].kl
    assert scores[0].kl_before == scores[2].kl_before > 0


def test_screening_measures_a_candidate_as_built(evaluator: Evaluator) -> None:
    """The divergence of the dense model's answers from the candidate's on the calibration images, without any training."""
    assert evaluator.divergence(evaluator.dense.space.identity()) == pytest.approx(0, abs=1e-7)
    images = torch.cat(list(evaluator.dense.data.calibration(256)))
    with torch.inference_mode():
        dense, found = (
            model.eval()(images).double().log_softmax(-1) for model in (evaluator.dense.model, evaluator.build(half(evaluator)))
        )
    expected = float((dense.exp() * (dense - found)).sum(-1).mean())
    assert len(images) == 256
    assert evaluator.divergence(half(evaluator)) == pytest.approx(expected, rel=1e-4)
    smallest = cut(evaluator.dense.space, lambda site: site.choices[0])
    assert evaluator.divergence(smallest) > expected > 0


def test_screening_leaves_the_trial_as_it_is(evaluator: Evaluator) -> None:
    before = evaluator.evaluate(half(evaluator), seed=0)
    divergences = [evaluator.divergence(half(evaluator)) for _ in range(2)]
    after = evaluator.evaluate(half(evaluator), seed=0)
    assert divergences[0] == divergences[1]
    assert (before.error, before.kl, before.kl_before) == (after.error, after.kl, after.kl_before)


def test_preparing_says_how_far_it_is(evaluator: Evaluator, tmp_path: Path) -> None:
    """256 calibration images in batches of 64, 10 sites, 297 search images in batches of 256.

    Nothing but loading before its first use.
    """
    seen: dict[str, list[tuple[int, int]]] = {}
    objective = replace(evaluator.dense.objective, factors=tmp_path / "run" / "factors")
    dense = load_dense(objective, lambda what, done, total: seen.setdefault(what, []).append((done, total)))
    assert list(seen) == ["loading"]
    assert dense.profile is dense.profile
    assert dense.figures is dense.figures
    assert list(seen) == ["loading", "calibration", "factors", "profile", "dense model"]
    assert seen["calibration"] == [(done, 4) for done in range(5)]
    assert seen["factors"] == [(done, 10) for done in range(11)]
    assert seen["profile"] == [(done, len(seen["profile"]) - 1) for done in range(len(seen["profile"]))]
    assert seen["dense model"] == [(0, 2), (1, 2), (2, 2)]


def test_factors_are_reused(evaluator: Evaluator, tmp_path: Path) -> None:
    folder = evaluator.dense.objective.factors
    _ = evaluator.dense.factors
    path = folder / f"{evaluator.dense.fingerprint}.safetensors"
    before = path.stat().st_mtime_ns
    again = load_dense(evaluator.dense.objective)
    _ = again.factors
    assert path.stat().st_mtime_ns == before
    sister = Objective(**{**vars(evaluator.dense.objective), "factors": folder.parents[1] / "other" / "factors"})
    _ = load_dense(sister).factors
    (copied,) = sister.factors.glob("*.safetensors")
    assert copied.read_bytes() == path.read_bytes()


def test_building_twice_fingerprints_once(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint hashes all weights of the dense model."""
    again, marks = Evaluator(load_dense(evaluator.dense.objective)), list[str]()

    def counted(*conditions: object) -> str:
        marks.append(fingerprint(*conditions))  # type: ignore[arg-type]
        return marks[-1]

    monkeypatch.setattr("objectives.dense_model.fingerprint", counted)
    again.build(half(again))
    again.build(half(again))
    dense = again.dense
    assert marks == [dense.fingerprint]
    plain = dense.factors_of(dense.space, {"ffn_hidden": "magnitude", "query_key": "magnitude"})
    assert dense.factors_of(dense.space, {"query_key": "magnitude", "ffn_hidden": "magnitude"}) is plain is not dense.factors
    assert len(marks) == 2


def prepared(evaluator: Evaluator, run: Path, **data: Any) -> DenseModel:
    """The same model in another run directory, which is no sister of the first one's."""
    objective = evaluator.dense.objective
    return load_dense(replace(objective, factors=run / "factors", data=replace(objective.data, **data)))


def test_a_profile_is_measured_once(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(evaluator, tmp_path / "one").profile
    assert first.images == 256, "there are no more calibration images"
    monkeypatch.setattr("objectives.dense_model.measure_profile", lambda *arguments: pytest.fail("measured again"))
    assert prepared(evaluator, tmp_path / "one").profile == first
    assert prepared(evaluator, tmp_path / "two").profile == first
    assert (tmp_path / "two" / "factors" / f"{evaluator.dense.fingerprint}.profile.json").exists()
    assert not list(tmp_path.glob("*/factors/.*partial"))


def test_other_images_or_sizes_make_another_profile(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [prepared(evaluator, tmp_path / "run", profile_images=images).profile for images in (96, 32, 0)]
    assert [profile.images for profile in profiles] == [96, 32, 0]
    assert profiles[0].measured != profiles[1].measured
    assert profiles[2].measured == {}
    assert profiles[0].closed == profiles[1].closed == profiles[2].closed
    calls = list[int]()

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return profiles[0]

    monkeypatch.setattr("objectives.dense_model.SIZES", 2)
    monkeypatch.setattr("objectives.dense_model.measure_profile", counted)
    assert prepared(evaluator, tmp_path / "run", profile_images=0).profile == profiles[0]
    assert calls


def test_a_damaged_profile_is_named_in_its_run_and_stops_no_other(evaluator: Evaluator, tmp_path: Path) -> None:
    measured = prepared(evaluator, tmp_path / "one").profile
    (path,) = tmp_path.glob("one/factors/*.profile.json")
    path.write_text("{")
    with pytest.raises(CheckpointError, match=f"{path} cannot be read"):
        _ = prepared(evaluator, tmp_path / "one").profile
    assert prepared(evaluator, tmp_path / "two").profile == measured
    path.unlink()
    path.mkdir()
    assert prepared(evaluator, tmp_path / "three").profile == measured, "read in the second run"


def test_damaged_factors_of_another_run_are_computed_again(evaluator: Evaluator, tmp_path: Path) -> None:
    path = tmp_path / "one" / "factors" / f"{evaluator.dense.fingerprint}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=f"{path} cannot be read"):
        _ = prepared(evaluator, tmp_path / "one").factors
    _ = prepared(evaluator, tmp_path / "two").factors
    assert (tmp_path / "two" / "factors" / path.name).stat().st_size > len(b"damaged")


def test_dense_figures_are_measured_once(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in another process, and by a sister run, without a pass of the dense model; answers are computed where needed."""
    first = prepared(evaluator, tmp_path / "one").figures
    assert first == evaluator.dense.figures
    monkeypatch.setattr("objectives.dense_model.predict", lambda *arguments: pytest.fail("measured again"))
    assert prepared(evaluator, tmp_path / "one").figures == first
    assert prepared(evaluator, tmp_path / "two").figures == first
    (copied,) = (tmp_path / "two" / "factors").glob(f"{evaluator.dense.fingerprint}.*.dense.json")
    copied.write_text("{")
    with pytest.raises(CheckpointError, match=f"{copied} cannot be read"):
        _ = prepared(evaluator, tmp_path / "two").figures
    asked = replace(prepared(evaluator, tmp_path / "one").objective, measure_before=True)
    score = Evaluator(load_dense(asked)).evaluate(evaluator.dense.space.identity(), seed=0)
    assert score.error_before == first.error
    assert score.kl_before == pytest.approx(0, abs=1e-7), "the answers were stored too"


def test_answers_come_back_in_their_order_or_are_refused(tmp_path: Path) -> None:
    path, answers = tmp_path / "answers", [torch.full((2, 3), float(index)) for index in range(12)]
    save_answers(path, answers)
    assert all(map(torch.equal, load_answers(path, 24), answers))
    with pytest.raises(CheckpointError, match="answers to 24 images, not to 25"):
        load_answers(path, 25)
    save_answers(path, [torch.zeros(2, 3, dtype=torch.float64)])
    with pytest.raises(CheckpointError, match="other tensors"):
        load_answers(path, None)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=f"{path} cannot be read"):
        load_answers(path, None)


@pytest.mark.parametrize("change", [{"eval_batch_size": 100}, {"val_split": "other"}, {"class_map": "map.txt"}])
def test_other_labels_or_batches_make_other_dense_figures(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    _ = prepared(evaluator, tmp_path / "run").figures
    other = prepared(evaluator, tmp_path / "run", **change)
    assert other.fingerprint == evaluator.dense.fingerprint
    assert other.figures.error == evaluator.dense.figures.error
    assert len(list(tmp_path.glob("run/factors/*.dense.json"))) == 2


def test_training_lowers_the_loss_and_ends_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = create_model(MODEL)
    data = Data(DATA, preprocessing(model, MODEL))
    losses = [step.loss for step in finetune(model, labelled(data.training(60, 0)), FinetuneConfig(steps=60, lr=1e-2))]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert not model.training


def test_mixed_precision_trains_about_as_well() -> None:
    ends = []
    for amp in ("off", "on"):
        torch.manual_seed(0)
        model = create_model(MODEL)
        data = Data(DATA, preprocessing(model, MODEL))
        config = FinetuneConfig(steps=40, lr=1e-2, amp=amp)
        losses = [step.loss for step in finetune(model, labelled(data.training(40, 0)), config)]
        ends.append(sum(losses[-10:]) / 10)
        assert next(model.parameters()).dtype == torch.float32
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.15)


def test_the_optimiser_is_one_kernel_and_trains_as_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, kernels = [], []
    for names in (finetune_module._FUSED, ()):
        monkeypatch.setattr(finetune_module, "_FUSED", names)
        torch.manual_seed(0)
        model = create_model(MODEL)
        data = Data(DATA, preprocessing(model, MODEL))
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            losses = [step.loss for step in finetune(model, labelled(data.training(10, 0)), FinetuneConfig(steps=10, lr=1e-3))]
        ends.append(losses[-1])
        kernels.append(any(event.key == "aten::_fused_adamw_" for event in profiler.key_averages()))
    assert kernels == [True, False]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_an_optimiser_without_such_a_kernel_trains() -> None:
    model = create_model(MODEL)
    data = Data(DATA, preprocessing(model, MODEL))
    assert len(list(finetune(model, labelled(data.training(2, 0)), FinetuneConfig(steps=2, opt="nadamw")))) == 2


def test_distillation_pulls_towards_the_dense_model() -> None:
    torch.manual_seed(0)
    dense = create_model(MODEL)
    with torch.no_grad():
        dense.get_parameter("head.weight").normal_(std=0.5)
    data = Data(DATA, preprocessing(dense, MODEL))
    answers = predict(dense, data.evaluation("search"))
    divergences = []
    for weight in (0.0, 1.0):
        torch.manual_seed(1)
        student = create_model(MODEL)
        config = FinetuneConfig(steps=40, lr=3e-3, distillation=weight)
        for _ in finetune(student, taught(data.training(40, 0), dense.eval(), config), config):
            pass
        divergences.append(evaluate(student, data.evaluation("search"), answers).kl or 0.0)
    assert divergences[1] < 0.5 * divergences[0]


def test_the_learning_rate_warms_up_and_decays() -> None:
    torch.manual_seed(0)
    model = create_model(MODEL)
    data = Data(DATA, preprocessing(model, MODEL))
    steps = finetune(model, labelled(data.training(40, 0)), FinetuneConfig(steps=40, lr=1e-3))
    rates = [step.lr for step in steps]
    assert rates[0] < rates[2] < rates[4] == pytest.approx(1e-3, rel=0.05)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 1e-5


def test_a_loss_that_is_not_finite_stops_the_trial(evaluator: Evaluator) -> None:
    def poisoned() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.full((4, 1, 8, 8), torch.nan), torch.zeros(4, dtype=torch.long)

    with pytest.raises(DivergedError, match="at step 1 of 100"):
        list(finetune(create_model(MODEL), labelled(poisoned()), FinetuneConfig()))


class Fixed(nn.Module):
    """Logits that say class 0, whatever the image."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([value, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 3)


def test_error_and_divergence_by_hand() -> None:
    images = torch.zeros(4, 1, 2, 2)
    batches = [(images, torch.tensor([0, 1, 2, 0])), (images[:1], torch.tensor([1]))]
    found = evaluate(Fixed(0.0), batches, predict(Fixed(1.0), batches))
    p = torch.tensor([1.0, 0.0, 0.0]).softmax(0)
    assert found.count == 5
    assert found.error == 3 / 5
    assert found.kl == pytest.approx(float((p * (p * 3).log()).sum()), rel=1e-5)


def test_errors_of_evaluation() -> None:
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(DataError, match="no image"):
        evaluate(Fixed(), [])
    with pytest.raises(DataError, match="label 7"):
        evaluate(Fixed(), [(image, torch.tensor([7]))])
    with pytest.raises(DivergedError):
        evaluate(Fixed(float("nan")), [(image, torch.tensor([0]))])


def test_unknown_device_is_named() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="not available here"):
        resolve_device("cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu(evaluator: Evaluator) -> None:
    on_gpu = Evaluator(load_dense(replace(evaluator.dense.objective, device="cuda")))
    scores = [entry.evaluate(half(evaluator), seed=0) for entry in (evaluator, on_gpu)]
    assert scores[0].error_before == pytest.approx(scores[1].error_before, abs=0.01)
