"""Training on a teacher: values, gradients, which pixels count."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.errors import UsageError  # noqa: E402
from edgeseg.training.distillation import DistillationLoss  # noqa: E402
from edgeseg.training.losses import LossSpec, PixelLoss  # noqa: E402

OUTPUTS = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.5, 0.25])


def loss_of(name="ce", **options):
    return DistillationLoss(PixelLoss(LossSpec.parse(name), OUTPUTS, WEIGHTS), **options)


def batch(teacher_outputs=OUTPUTS):
    """Student ``[2, 5, 4, 6]`` and teacher logits float64, labels with some ignored."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, OUTPUTS, 4, 6, generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(2, teacher_outputs, 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, OUTPUTS, (2, 4, 6), generator=generator)
    labels[torch.rand(2, 4, 6, generator=generator) < 0.2] = 255
    return student, teacher, labels


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(student, teacher, labels, temperature, on_ignored, confidence):
    """Sum of the soft term and its pixels, pixel by pixel."""
    shared = min(student.shape[1], teacher.shape[1])
    total, pixels = 0.0, 0
    for n, y, x in np.ndindex(*labels.shape):
        s, t = student[n, :shared, y, x], teacher[n, :shared, y, x]
        if (labels[n, y, x] == 255 and not on_ignored) or softmax(t).max() < confidence:
            continue
        p, q = softmax(t / temperature), softmax(s / temperature)
        total += temperature**2 * (p * np.log(p / q)).sum()
        pixels += 1
    return total, pixels


@pytest.mark.parametrize(
    ("outputs", "temperature", "on_ignored", "confidence"),
    list(itertools.product([4, 5, 6], [1.0, 2.5], [False, True], [0.0, 0.6])),
)
def test_soft_sum_and_its_weight(outputs, temperature, on_ignored, confidence):
    student, teacher, labels = batch(outputs)
    loss = loss_of(temperature=temperature, on_ignored=on_ignored, confidence=confidence)
    wanted, pixels = reference(
        student.numpy(), teacher.numpy(), labels.numpy(), temperature, on_ignored, confidence
    )
    assert 0 < pixels <= labels.numel()
    hard, soft = loss(student, teacher, labels)
    assert float(soft) == pytest.approx(wanted, rel=1e-12)
    assert float(loss.soft_weight(labels, teacher)) == pixels
    torch.testing.assert_close(hard, loss.hard(student, labels), rtol=0, atol=0)
    assert float(loss.weight(labels)) == float(loss.hard.weight(labels))


@pytest.mark.parametrize("outputs", [4, 5])
@pytest.mark.parametrize("name", ["ce", "focal+isomax", "ohem+logitnorm"])
def test_gradient(name, outputs):
    student, teacher, labels = batch(outputs)
    loss = loss_of(name, temperature=2.0, soft_share=0.3, confidence=0.5)

    def mean(x):
        hard, soft = loss(x, teacher, labels)
        return loss.combine(hard / loss.weight(labels), soft / loss.soft_weight(labels, teacher))

    assert torch.autograd.gradcheck(mean, student.requires_grad_())


def test_gradient_of_the_soft_sum_in_closed_form():
    student, teacher, labels = batch()
    _, soft = loss_of(temperature=3.0)(student.requires_grad_(), teacher.requires_grad_(), labels)
    soft.backward()
    difference = (student / 3).softmax(1) - (teacher / 3).softmax(1)
    wanted = 3 * difference * (labels != 255).unsqueeze(1)
    torch.testing.assert_close(student.grad, wanted.detach())
    assert teacher.grad is None


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    student, _, labels = batch()
    student = student.float()
    shifted = (student + 1.0).requires_grad_()  # A constant per pixel changes no probability.
    _, soft = loss_of(on_ignored=True)(shifted, student, labels)
    soft.backward()
    assert soft.item() == pytest.approx(0, abs=1e-5)
    assert float(shifted.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_isomax_student_that_equals_its_teacher_has_nothing_to_learn(temperature):
    """Both of their logits go through E_s."""
    student, _, labels = batch()
    distances = -student.abs()
    loss = loss_of("isomax", temperature=temperature, on_ignored=True, teacher_scale=10.0)
    _, soft = loss(distances.requires_grad_(), distances.detach(), labels)
    soft.backward()
    assert soft.item() == pytest.approx(0, abs=1e-9)
    assert float(distances.grad.abs().max()) < 1e-9


def test_the_teachers_scale_is_that_of_its_logits_everywhere():
    """In the divergence and in what it is sure of."""
    student, teacher, labels = batch(OUTPUTS - 1)
    options = {"temperature": 2.0, "confidence": 0.6}
    scaled, plain = loss_of(**options, teacher_scale=10.0), loss_of(**options)
    for ours, theirs in zip(
        scaled(student, teacher, labels), plain(student, 10 * teacher, labels), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    sure = [float(loss.soft_weight(labels, teacher)) for loss in (scaled, plain)]
    assert sure[0] == float(plain.soft_weight(labels, 10 * teacher)) > sure[1]


def test_a_teacher_without_void_says_nothing_of_the_void_output():
    student, teacher, labels = batch(OUTPUTS - 1)
    loss = loss_of()
    _, soft = loss(student.requires_grad_(), teacher, labels)
    soft.backward()
    assert (student.grad[:, -1] == 0).all()
    assert (student.grad[:, :-1] != 0).any()


@pytest.mark.parametrize("confidence", [0.0, 0.6])
def test_parts_of_a_batch_add_up(confidence):
    student, teacher, labels = batch()
    loss = loss_of(confidence=confidence, soft_share=0.25)
    parts = list(zip(student.split(1), teacher.split(1), labels.split(1), strict=True))
    weight = sum(loss.weight(y) for _, _, y in parts)
    soft_weight = sum(loss.soft_weight(y, t) for _, t, y in parts)
    sums = [loss(*part) for part in parts]
    got = sum(loss.combine(hard / weight, soft / soft_weight) for hard, soft in sums)
    hard, soft = loss(student, teacher, labels)
    whole = loss.combine(hard / loss.weight(labels), soft / loss.soft_weight(labels, teacher))
    torch.testing.assert_close(got, whole)


def test_combine_mixes_by_the_soft_share():
    two, ten = torch.tensor(2.0), torch.tensor(10.0)
    assert float(loss_of(soft_share=0.25).combine(two, ten)) == 4
    assert float(loss_of(soft_share=0.0).combine(two, ten)) == 2
    assert float(loss_of(soft_share=1.0).combine(two, ten)) == 10


def test_nothing_but_ignored_pixels():
    student, teacher, labels = batch()
    labels.fill_(255)
    loss = loss_of()
    hard, soft = loss(student.requires_grad_(), teacher, labels)
    (hard + soft).backward()
    assert hard.item() == soft.item() == float(loss.soft_weight(labels)) == 0
    assert (student.grad == 0).all()


def test_half_precision_is_computed_in_float32():
    student, teacher, labels = batch()
    student, teacher = student.bfloat16(), teacher.half()
    loss = loss_of(temperature=2.0)
    got = loss(student, teacher, labels)
    assert got[0].dtype == got[1].dtype == torch.float32
    torch.testing.assert_close(got, loss(student.float(), teacher.float(), labels))


def test_what_does_not_fit_is_refused():
    student, teacher, labels = batch()
    with pytest.raises(ValueError, match="resize the teacher's first"):
        loss_of()(student, teacher[..., :3, :3], labels)
    with pytest.raises(ValueError, match="soft_weight needs the teacher's logits"):
        loss_of(confidence=0.5).soft_weight(labels)
    with pytest.raises(ValueError, match="teacher_scale"):
        loss_of(teacher_scale=0.0)
    for options in ({"temperature": 0.0}, {"soft_share": 1.5}, {"confidence": -0.1}):
        with pytest.raises(UsageError, match=next(iter(options))):
            loss_of(**options)
