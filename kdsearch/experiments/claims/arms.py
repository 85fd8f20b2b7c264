"""Claims 1 to 4 and 7 to 9: students taught in arms that differ in one thing, against a control.

Every margin stands in `lab.SETTINGS` or here, fixed before anything ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kdsearch.experiments.claims.findings import Effect, Finding, Verdict, effect
from kdsearch.experiments.claims.lab import LEFT_OUT, WIDE, Arm, Lab

FASTER = 10.0  # times, at least: the deck's aim is 10 to 100
GARBAGE = 20.0  # points above chance, at most: then a student counts as having learnt nothing of use
MISLED = 10.0  # points below labels alone, at least: then a transfer set counts as misleading
RECALL = 10.0  # points of recall, at least: then a class counts as learnt without its images
LABELS = Arm(loss_weight=0.0)
BOTH = Arm(loss_weight=0.5, temperature=4.0, ordinary=True)  # cls + div, as the deck's CIFAR-10 loss
TEACHER = Arm(loss_weight=1.0)  # as the deck's MNIST loss
SOFT = 14.0  # four times the temperature of the teacher's own softmax, as on CIFAR-10


def percent(values: Sequence[float]) -> list[float]:
    """Fractions as percent."""
    return [100 * value for value in values]


def points(number: float) -> str:
    """A margin in words."""
    return f"{number:g} point{'' if number == 1 else 's'}"


def claim_1(lab: Lab) -> Finding:
    """10 to 100 times faster, at little loss of accuracy."""
    students = lab.accuracies(Arm(width=WIDE))
    theirs = [lab.whole.facts.accuracy] * len(students)
    timing = lab.ratio(WIDE)
    margin = lab.settings.margins["loss"]
    fast: Verdict = "undecided"
    if timing.low >= FASTER:
        fast = "confirmed"
    elif timing.high < FASTER:
        fast = "refuted"
    return Finding(
        1,
        "Students are 10 to 100 times faster than the teacher, at little loss of accuracy.",
        lab.dataset,
        f"A student of {WIDE} units (the deck's largest) taught by the teacher alone, against the teacher itself: at "
        f"most {points(margin)} less accurate, and at least {FASTER:g} times as fast.",
        [effect("student - teacher", students, theirs, margin=-margin)],
        f"It is {timing.ratio:.1f} times as fast as the teacher (95 % interval {timing.low:.1f} to {timing.high:.1f}, "
        f"measured as searches measure it).",
        {"student": percent(students), "teacher": percent(theirs)},
        decided=fast,
        facts={"ratio": {"median": timing.ratio, "low": timing.low, "high": timing.high}, "width": WIDE},
    )


def claim_2(lab: Lab) -> Finding:
    """The KD loss gains on the full training set."""
    both, labels = lab.accuracies(BOTH), lab.accuracies(LABELS)
    margin = lab.settings.margins["gain"]
    return Finding(
        2,
        "With the KD loss a student gains on the full training set (on CIFAR-10: 77.6 against 75.8).",
        lab.dataset,
        "cls_loss + div_loss (T = 4 times the teacher's own, as on CIFAR-10) against cls_loss alone, all else equal: "
        f"more than {points(margin)} better.",
        [effect("cls + div - labels alone", both, labels, margin=margin)],
        arms={"cls + div": percent(both), "labels alone": percent(labels)},
    )


def claim_3(lab: Lab) -> Finding:
    """The KD loss gains more on a reduced training set."""
    few_both, few_labels = (lab.accuracies(replace(arm, images="tenth")) for arm in (BOTH, LABELS))
    both, labels = lab.accuracies(BOTH), lab.accuracies(LABELS)
    margin = lab.settings.margins["gain"]
    few_gain = [a - b for a, b in zip(few_both, few_labels, strict=True)]
    gain = [a - b for a, b in zip(both, labels, strict=True)]
    return Finding(
        3,
        "The KD loss gains more on a reduced training set: a teacher makes up for missing data (61.2 against 56.0).",
        lab.dataset,
        "The gain of cls_loss + div_loss over cls_loss alone with a tenth of the training images, minus the same gain "
        f"with all of them; the teacher saw all: more than {points(margin)}.",
        [
            effect("gain with a tenth - gain with all", few_gain, gain, margin=margin),
            effect("gain with a tenth", few_both, few_labels, margin=margin, decides=False),
        ],
        arms={
            "tenth, cls + div": percent(few_both), "tenth, labels alone": percent(few_labels),
            "all, cls + div": percent(both), "all, labels alone": percent(labels),
        },
    )  # fmt: skip


def claim_4(lab: Lab) -> Finding:
    """A teacher can replace labels altogether."""
    taught, labels = lab.accuracies(TEACHER), lab.accuracies(LABELS)
    margin = lab.settings.margins["loss"]
    return Finding(
        4,
        "A teacher can replace labels altogether.",
        lab.dataset,
        "The teacher's outputs alone (T = 3.5) against the labels alone, same student: at most "
        f"{points(margin)} worse.",
        [effect("teacher alone - labels alone", taught, labels, margin=-margin)],
        arms={"teacher alone": percent(taught), "labels alone": percent(labels)},
    )


def claim_7(lab: Lab) -> Finding:
    """The student's sample need not be the teacher's."""
    other = lab.accuracies(replace(BOTH, images="second half", teacher="half"))
    same = lab.accuracies(replace(BOTH, images="first half", teacher="half"))
    labels = lab.accuracies(replace(LABELS, images="second half"))
    margin = lab.settings.margins["loss"]
    return Finding(
        7,
        "The student's sample need not be the teacher's: cls_loss covers data that the teacher never saw.",
        lab.dataset,
        "The teacher saw the first half of the training images. cls_loss + div_loss on the second half, against the "
        "same on the first half, and against cls_loss alone on the second half: at most "
        f"{points(margin)} worse than each.",
        [
            effect("other half - the teacher's half", other, same, margin=-margin),
            effect("other half, cls + div - other half, labels alone", other, labels, margin=-margin),
        ],
        arms={
            "other half, cls + div": percent(other), "the teacher's half, cls + div": percent(same),
            "other half, labels alone": percent(labels),
        },
    )  # fmt: skip


def claim_8(lab: Lab) -> Finding:
    """Random data teach garbage."""
    noise, pictures = (lab.accuracies(Arm(images="noise")), lab.accuracies(Arm(images="photographs")))
    real, labels = lab.accuracies(TEACHER), lab.accuracies(LABELS)
    chance = [lab.chance] * len(noise)
    garbage = Effect("chance + 20 - noise", [GARBAGE + 100 * (c - n) for c, n in zip(chance, noise, strict=True)], 0.0)
    return Finding(
        8,
        "A student taught on random data gets garbage: div_loss then misleads it.",
        lab.dataset,
        "The teacher's outputs alone, for as many noise images (uniform pixels), or grey patches of two photographs, "
        "as there are training images; tested on the real test set. Garbage: noise teaches at most "
        f"{points(GARBAGE)} more than chance. Misled: more than {points(MISLED)} worse than labels alone.",
        [
            garbage,
            effect("labels alone - noise", labels, noise, margin=MISLED),
            effect("real images - noise", real, noise, margin=MISLED, decides=False),
            effect("labels alone - photographs", labels, pictures, margin=MISLED, decides=False),
        ],
        arms={
            "noise": percent(noise), "photographs": percent(pictures), "real images": percent(real),
            "labels alone": percent(labels), "chance": percent(chance),
        },
    )  # fmt: skip


def claim_9(lab: Lab) -> Finding:
    """A class never shown is still learnt."""
    arms = (replace(TEACHER, temperature=SOFT), TEACHER, LABELS)
    soft, own, hard = (lab.accuracies(replace(arm, images="without a class"), label=LEFT_OUT) for arm in arms)
    everything = lab.accuracies(TEACHER, label=LEFT_OUT)
    name = lab.split.classes[LEFT_OUT]
    return Finding(
        9,
        "A class never shown to the student is still learnt from the soft targets.",
        lab.dataset,
        f"No image of class {name} in the transfer set: its recall on the test set, taught by the teacher alone, "
        f"against hard labels on the same images: more than {points(RECALL)}. T = {SOFT:g}, four times that of the "
        "teacher's own softmax, decides; at the deck's 3.5, which is the teacher's own, the targets are as hard as its "
        "training made them.",
        [
            effect(f"recall of {name}: T = {SOFT:g} - hard labels", soft, hard, margin=RECALL),
            effect(f"recall of {name}: T = 3.5 - hard labels", own, hard, margin=RECALL, decides=False),
        ],
        arms={
            f"recall of {name}, T = {SOFT:g}": percent(soft), f"recall of {name}, hard labels": percent(hard),
            f"recall of {name}, T = 3.5": percent(own), f"recall of {name}, shown all": percent(everything),
        },
    )  # fmt: skip


EXPERIMENTS: dict[int, Callable[[Lab], Finding]] = {
    1: claim_1, 2: claim_2, 3: claim_3, 4: claim_4, 7: claim_7, 8: claim_8, 9: claim_9
}  # fmt: skip
