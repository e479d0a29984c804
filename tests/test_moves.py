"""Feedback that chooses among moves: what it chooses, when it repeats a move, and how noise is judged.

python -m pytest tests/test_moves.py
"""

import copy
import json
import math
import signal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import feedback_magnitude_pruning as fmp
from data.code_cache import open_cache
from data.radioml import batches, open_frames, split
from models.fake_quant import QuantReLU
from models.rebuild import rebuild
from models.vgg10 import VGG10
from tests.conftest import AMC_SMALL, assert_equal, contents, kill_inside, log_of
from utils import checkpoint, evaluation, kd_losses, pruning_masks, runs
from utils.cost import challenge_score
from utils.evaluation import Judge, KeptLogits, standard_error
from utils.pruning_masks import MOVES, Cuts, Moves, Pruned, cost_of, feedback_of, nonzero_masks
from utils.runs import RunError
from utils.training import CapturedStep

CUTS = Cuts("fmp", 2.0, 0.4, None, "lamp-cost")


def small(bits=4, activation_bits=None, **arguments) -> Pruned:
    torch.manual_seed(0)
    network = VGG10(bits, activation_bits, filters=6, dense=8, samples=128, **arguments)
    for block in [*network.features, *network.dense]:
        block.activation.steps.fill_(30)  # thresholds are past their initial steps
    return Pruned(network, nonzero_masks(network.weights()))


def score_of(model: Pruned) -> float:
    return challenge_score(cost_of(model.network))["score"]


def losing(amounts: dict[str, float]):
    """A probe in which each kind of change costs so much accuracy, 0 where it is not named."""

    def probe(network) -> tuple[float, float]:
        bits, read = (np.array(widths).sum() for widths in (network.bits, network.activation_bits))
        changed = {
            "weight-bit": not isinstance(network.bits, int) and bits < 40,
            "activation-bit": not isinstance(network.activation_bits, int) and read < 40,
            "filters": network.arguments()["filters"] != (6,) * 7 or network.arguments()["dense"] != (8, 8),
        }
        changed["prune"] = not any(changed.values()) and bool((network.output.weight == 0).any())
        return 0.9 - sum(amounts.get(kind, 0.0) for kind, is_so in changed.items() if is_so), 0.01

    return probe


# ---- the choice


@pytest.mark.parametrize("cheap", MOVES)
def test_the_move_with_the_most_gain_for_its_loss_is_chosen_and_the_network_before_it_stays(cheap):
    model = small()
    before = copy.deepcopy(model.network.state_dict())
    feedback = Moves.begin(list(MOVES), CUTS)
    smaller = feedback.next(model, CUTS, losing({kind: 0.8 for kind in MOVES if kind != cheap}))
    facts = feedback.facts()
    assert facts["method"] == cheap and facts["lost"] == 0 and facts["noise"] == 0.01
    assert score_of(smaller) < score_of(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    gains = {name: gain / max(lost, 0.01) for name, (gain, lost) in facts["probed"].items()}
    assert max(gains, key=gains.get).startswith(cheap)
    assert (smaller.network.input.bits, len(facts["probed"])) == (4, 10)  # shares of two kinds, four layers of two
    for name, weight in smaller.network.weights().items():
        assert weight[~smaller.masks[name]].eq(0).all()


def test_losses_below_the_noise_are_equal():
    feedback = Moves.begin(["prune", "weight-bit"], CUTS)
    feedback.next(small(), CUTS, losing({"prune": 0.009}))
    assert feedback.chosen["method"] == "prune"  # it saves far more than a bit


def test_gains_are_what_the_cost_counter_finds():
    model, feedback = small((4, 2, 3, 8, 5, 2, 6, 3, 7, 4), (5, 4, 8, 2, 3, 6, 7, 2, 3, 8)), Moves.begin([*MOVES], CUTS)
    now = score_of(model)
    for move, gain, candidate in feedback._candidates(model, CUTS):
        after = score_of(candidate)
        if move["method"] == "weight-bit":  # weights that round to zero come on top
            name = move["layer"]
            codes = int(model.network.layers()[name].weight_codes().count_nonzero())
            still = int(candidate.network.layers()[name].weight_codes().count_nonzero())
            after += (codes - still) * cost_of(candidate.network)[name].of_one_weight
        assert 1 - after / now == pytest.approx(gain, rel=1e-9), move


def test_bits_go_from_the_dearest_layers_and_never_from_the_input_nor_below_two():
    bits, read = (4, 2, 3, 8, 5, 2, 6, 3, 7, 4), (2, 4, 2, 3, 2, 2, 2, 2, 2, 2)
    model = small(bits, read)
    feedback = Moves.begin(["weight-bit", "activation-bit"], CUTS)
    feedback.next(model, CUTS, losing({}))
    probed = feedback.chosen["probed"]
    shares = {name: layer.nonzero * layer.of_one_weight for name, layer in cost_of(model.network).items()}
    saved = {f"weight-bit {name}": shares[name] / width for name, width in zip(shares, bits, strict=True) if width > 2}
    dearest = sorted(saved, key=saved.get)[-4:]
    assert probed.keys() == {*dearest, "activation-bit features.1.layer", "activation-bit features.3.layer"}


@pytest.mark.parametrize("learned", [False, True])
def test_a_bit_less_leaves_the_codes_nearest_to_the_weights(learned):
    model = small(learned_steps=learned)
    with torch.no_grad():
        model.network.features[2].layer.weight.view(-1)[0] = 3.0  # one large weight, coarse steps
    narrow = pruning_masks.take_weight_bit(model, "features.2.layer").network
    assert (narrow.bits, narrow.activation_bits) == ((4, 4, 3, *(4,) * 7), 4)
    weight, plain = model.network.features[2].layer.weight, model.network.requantised((4, 4, 3, *(4,) * 7), 4)
    errors = [
        float((network.features[2].layer.quantised_weight() - weight).detach().square().sum())
        for network in (narrow, plain)
    ]
    assert errors[0] <= errors[1]
    if learned:  # the step is learned, weights stay
        assert torch.equal(narrow.features[2].layer.weight, weight)
    else:
        grid = [1 - 0.05 * i for i in range(15)]
        weight = weight.detach()
        clamped = (weight.clamp(-share * weight.abs().max(), share * weight.abs().max()) for share in grid)
        steps = [(w, w.abs().max() / 3) for w in clamped]
        assert errors[0] == pytest.approx(
            min(float(((w / step).round() * step - weight).square().sum()) for w, step in steps), rel=1e-4
        )


# ---- after a step


def test_a_share_falls_after_a_failure_and_grows_again_after_two_successes():
    feedback = Moves.begin(["prune", "filters"], CUTS)
    assert feedback.shares == {"prune": 0.4, "filters": 0.2}
    course = []
    for good in (False, False, True, True, True, False, True, True, True, True):
        feedback.chosen = {"move": "prune", "method": "prune"}
        feedback.note(good, 0.5, CUTS)
        course.append(feedback.shares["prune"])
    assert course == [0.2, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.2, 0.2, 0.4] and feedback.shares["filters"] == 0.2


def test_a_bit_that_failed_rests_until_as_many_others_succeeded_as_it_has_failed():
    feedback = Moves.begin(["prune", "weight-bit"], CUTS)

    def note(move, good):
        feedback.chosen = {"move": move, "method": move.split()[0]}
        feedback.note(good, 0.5, CUTS)

    note("weight-bit output", False)
    assert feedback.rests == {"weight-bit output": 1} and feedback.stretch == 2
    note("prune", True)
    assert not feedback.rests and feedback.stretch == 1
    note("weight-bit output", False)
    assert feedback.rests == {"weight-bit output": 2}
    note("prune", True)
    assert feedback.rests == {"weight-bit output": 1}
    names = [move["layer"] for move, _, _ in feedback._candidates(small(), CUTS) if move["method"] == "weight-bit"]
    assert names and "output" not in names
    note("weight-bit output", True)
    assert not feedback.failed
    again = feedback_of(json.loads(json.dumps(feedback.__dict__)))
    assert again == feedback


@pytest.mark.slow
def test_where_everything_fails_it_ends(monkeypatch):
    monkeypatch.setattr(pruning_masks, "PROBED_LAYERS", 1)
    kinds = ["prune", "weight-bit", "activation-bit"]
    feedback, model, steps = Moves.begin(kinds, CUTS), small(), 0
    while feedback.next(model, CUTS, losing({})):
        feedback.note(False, 1.0, CUTS)
        steps += 1
    # Shares from .4 down to .025; then pruning rests, and the bits of ten layers and of nine inputs
    assert steps == 5 + 10 + 9 and feedback.stretch == 3


def test_a_network_that_became_dearer_is_no_success():
    feedback = Moves.begin(["prune"], CUTS)
    feedback.note(True, 0.5, CUTS)
    assert feedback.lowers(0.49) and not feedback.lowers(0.5)


# ---- noise


def judged(monkeypatch, accuracies: list[float], first_goal=0.5):
    """A judge of 1,000 validation frames that sees these accuracies in turn, and the rows of each look."""
    looks, left = [], list(accuracies)
    monkeypatch.setattr(
        evaluation, "amc_accuracy", lambda network, frames, rows, device: (looks.append(rows), left.pop(0))[1]
    )
    parts = {"train": np.arange(5000), "validation": np.arange(5000, 6000), "test": np.arange(6000, 7000)}
    return Judge(None, parts, torch.device("cpu"), 0.5, first_goal, recalibrates=False), looks


def test_a_failure_near_the_goal_gets_a_second_look_at_more_frames(monkeypatch):
    first, whole = math.sqrt(0.25 / 500), math.sqrt(0.25 / 1000)  # standard errors
    assert standard_error(0.5, 500) == pytest.approx(first)
    for accuracies, held, sizes in [
        ([0.5 + 1.01 * first], True, [500]),
        ([0.5 - 1.01 * first], False, [500]),  # two errors below the raised goal
        ([0.5, 0.5 + 1.01 * whole], True, [500, 1000]),
        ([0.5 + 0.9 * first, 0.5 + 0.99 * whole], False, [500, 1000]),
    ]:
        judge, looks = judged(monkeypatch, accuracies)
        assert judge(None) == (accuracies[-1], held)
        assert [len(rows) for rows in looks] == sizes
        assert all(set(rows) <= set(range(5000, 6000)) for rows in looks)


def test_as_published_one_look_at_all_frames_decides(monkeypatch):
    for accuracy in (0.5, 0.4999):
        judge, looks = judged(monkeypatch, [accuracy], first_goal=None)
        assert judge(None) == (accuracy, accuracy == 0.5) and [len(rows) for rows in looks] == [1000]


def test_a_probe_measures_batch_norm_on_training_frames_and_accuracy_on_validation_frames(radioml_file):
    frames = open_cache(open_frames(radioml_file), 4)
    parts = {name: rows[::4][:128] for name, rows in split(frames).items()}
    network = VGG10(4, filters=4, dense=8)
    with torch.no_grad():
        network.features[0].norm.running_mean.fill_(7)
    judge = Judge(frames, parts, torch.device("cpu"), 0.5, 0.5)
    accuracy, error = judge.probe(network)
    assert error == pytest.approx(max(math.sqrt(accuracy * (1 - accuracy) / 128), 1 / 128))
    x = frames.samples(parts["train"])
    with torch.no_grad():
        seen = network.features[0].layer(network.input(x).unsqueeze(2))
        assert torch.allclose(network.features[0].norm.running_mean, seen.mean((0, 2, 3)), atol=1e-4)
        right = (
            network.eval()(frames.samples(parts["validation"])).argmax(1).numpy() == frames.labels[parts["validation"]]
        )
    assert accuracy == pytest.approx(right.mean())
    assert judge.probe(network)[0] == accuracy


def test_a_judgement_measures_batch_norm_anew_unless_told_not_to(radioml_file):
    frames = open_cache(open_frames(radioml_file), 4)
    parts = {name: rows[::4][:128] for name, rows in split(frames).items()}
    network = VGG10(4, filters=4, dense=8)
    mean = network.features[0].norm.running_mean
    for recalibrates in (False, True):
        mean.fill_(7)  # as left behind by a network whose weights have changed since
        Judge(frames, parts, torch.device("cpu"), 0.5, recalibrates=recalibrates)(network)
        assert (mean == 7).all() != recalibrates


# ---- the teacher


def test_kd_of_one_label_a_frame_is_that_of_a_map_of_one_pixel():
    student, teacher = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    p, q = (np.exp(v.numpy() / 2) / np.exp(v.numpy() / 2).sum(1, keepdims=True) for v in (teacher, student))
    assert kd_losses.pixel_kd(student, teacher, 2.0).item() == pytest.approx(
        4 * (p * np.log(p / q)).sum(1).mean(), rel=1e-5
    )
    maps = kd_losses.pixel_kd(student[:, :, None, None], teacher[:, :, None, None], 2.0)
    assert maps.item() == pytest.approx(kd_losses.pixel_kd(student, teacher, 2.0).item(), rel=1e-6)


def test_kept_logits_lie_beside_their_frames(radioml_file):
    frames, device = open_cache(open_frames(radioml_file), 8), torch.device("cpu")
    torch.manual_seed(0)
    rows, teacher = split(frames)["train"], VGG10(8, filters=4, dense=8)
    kept = KeptLogits.of(teacher, frames, rows, device)
    order = np.random.RandomState(1).permutation(rows)[:40]
    for x, label, logits in kept.beside(batches(frames, order, 16), order, 16):
        with torch.no_grad():
            assert torch.allclose(logits, teacher(x), atol=1e-2) and len(label) == len(logits)
    assert not list(kept.beside(batches(frames, order[:0], 16), order[:0], 16))
    assert not teacher.training


# ---- the script


@pytest.fixture(scope="module")
def options(radioml_file, amc_baseline) -> list[str]:
    argv = ["--data-file", str(radioml_file), "--checkpoint", str(amc_baseline / "best.pt"), *AMC_SMALL]
    argv += ["--step-epochs", "1", "--epoch-frames", "96", "--p", ".5", "--keep", ".6", "--moves"]
    return [*argv, "--alpha", ".5", "--temperature", "2", "--budget", "3"]


@pytest.mark.slow
def test_a_run_of_moves_logs_each_and_ends_the_same_after_kills(options, tmp_path, monkeypatch):
    def by_score(network, *_):  # so that the course doesn't depend on the processor; narrow weights lose too much
        return min(1.0, score_of(Pruned(network, {})) / 0.003) - 0.3 * (not isinstance(network.bits, int))

    monkeypatch.setattr(evaluation, "amc_accuracy", by_score)
    monkeypatch.setattr(pruning_masks, "PROBED_LAYERS", 1)
    assert fmp.main([*options, "--out", str(tmp_path / "whole")]) == 0
    result = json.loads((tmp_path / "whole/result.json").read_text())
    rows, lines = result["steps"], log_of(tmp_path / "whole")
    moves = [line for line in lines if "score" in line]
    assert [{**row, "epoch": line["epoch"]} for row, line in zip(rows, moves, strict=True)] == moves
    assert result["method"] == "moves" and [row["good"] for row in rows].count(True) > 1 and not rows[-1]["good"]
    for row in rows[1:]:
        assert row["method"] in MOVES and set(row["probed"]) >= {"prune"} and row["gain"] > 0
    kept = [row["score"] for row in rows if row["good"]]
    assert kept == sorted(kept, reverse=True) and kept[-1] == result["cost"]["score"]
    best = checkpoint.load(tmp_path / "whole/best.pt")
    network = rebuild(best)
    assert all(weight[~best["masks"][name]].eq(0).all() for name, weight in network.weights().items())

    argv = [*options, "--save-every", "3", "--resume", "--out", str(tmp_path / "run")]
    for module, place, count in [
        (fmp, "keep_or_go_back", 2),
        (pruning_masks, "take_weight_bit", 1),
        (fmp, "save_last", 3),
        (runs, "log", 2),
    ]:
        assert kill_inside(module, place, count, fmp.main, argv) == signal.SIGKILL
    assert fmp.main(argv) == 0
    assert_equal(contents(tmp_path / "run"), contents(tmp_path / "whole"))


@pytest.mark.slow
def test_a_network_of_mixed_widths_goes_on_with_them_and_holds_what_the_teacher_sets(options, amc_baseline, tmp_path):
    data = checkpoint.load(amc_baseline / "best.pt")
    mixed = rebuild(data).requantised((5, 5, 5, 8, 5, 5, 6, 5, 7, 6), 5)
    checkpoint.save(tmp_path / "mixed.pt", evaluation.describe_amc(mixed, 0))
    argv = [*options, "--checkpoint", str(tmp_path / "mixed.pt"), "--keep-bits", "--out", str(tmp_path / "run")]
    argv += ["--moves", "prune", "--keep", ".01", "--p", ".99", "--min-p", ".9"]
    assert fmp.main([*argv, "--teacher", str(amc_baseline / "best.pt")]) == 0
    best = rebuild(checkpoint.load(tmp_path / "run/best.pt"))
    assert (best.bits, best.activation_bits) == (mixed.bits, 5)
    goal = json.loads((tmp_path / "run/result.json").read_text())["goal"]
    frames = open_frames(argv[1])
    accuracy = evaluation.amc_accuracy(rebuild(data), frames, split(frames)["validation"], torch.device("cpu"))
    assert goal == pytest.approx(0.01 * accuracy)


class NoReading(TorchDispatchMode):
    """Refuses what a CUDA graph can't hold: asking the device for a number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense, "a number was read"
        return func(*args, **(kwargs or {}))


def test_the_teacher_alone_can_teach_in_a_step_that_a_graph_can_hold(options, tmp_path, monkeypatch):
    class Strict(CapturedStep):
        def __call__(self, *inputs):
            with NoReading():
                return self.function(*inputs)

    calls = []
    monkeypatch.setattr(fmp, "CapturedStep", Strict)
    monkeypatch.setattr(QuantReLU, "learning", True)  # on a CPU a layer reads its counter at each step
    monkeypatch.setattr(fmp, "pixel_kd", lambda *maps: (calls.append(maps), kd_losses.pixel_kd(*maps))[1])
    argv = [*options, "--beta", "0", "--alpha", "1", "--budget", "1", "--threshold", "1"]
    with pytest.raises(RunError, match="without any cut"):
        fmp.main([*argv, "--out", str(tmp_path / "run")])
    losses = [kd_losses.pixel_kd(*maps).item() for maps in calls]
    assert len(calls) == 6 and log_of(tmp_path / "run")[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert all(temperature == 2.0 for _, _, temperature in calls)
    with NoReading(), pytest.raises(AssertionError, match="a number was read"):
        torch.ones(()).item()


def test_moves_have_their_own_defaults_and_refuse_what_ends_at_a_failure():
    args = fmp.parse_args(["--moves"])
    assert (args.moves, args.score) == (list(MOVES), "lamp-cost") and fmp.parse_args([]).score == "magnitude"
    assert fmp.parse_args(["--moves", "prune", "--score", "cost"]).score == "cost"
    for argv in (["--moves", "--replay-faults"], ["--moves", "--preset", "imp-4bit"], ["--moves", "grow"]):
        with pytest.raises(SystemExit, match="2"):
            fmp.parse_args(argv)
    for argv in (["--alpha", "-1"], ["--beta", "0"], ["--temperature", "0"]):
        with pytest.raises(SystemExit, match="2"):
            fmp.parse_args(argv)
