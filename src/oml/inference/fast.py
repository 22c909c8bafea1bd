"""Extractors made fast for inference, and how far their embeddings are from the exact ones."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from oml.functional.distances import normalise
from oml.inference.convolutions import fold_batch_norms, is_convolutional, round_convolutions
from oml.interfaces.models import IExtractor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CPU_BATCH_SIZE = 8  # of these, the activations stay in the caches of a core


@dataclass(frozen=True)
class Inference:
    """How to compute embeddings when nothing is learnt: for :func:`for_inference` and ``extract_embeddings``.

    The defaults change nothing but the layout of convolutional networks and the number of images at a time: embeddings
    stay those of float32 to rounding. ``Inference(dtype=torch.bfloat16)`` is the largest step on processors with units
    for it (CPUs with AVX-512 BF16 or AMX, GPUs since Ampere), and slow on others; ``compile=True`` is another one,
    which takes tens of seconds before the first image and pays off from thousands on.

    Args:
        dtype: what convolutions and matrix products are computed in, by autocast: ``float32``, ``bfloat16`` or
            ``float16``. Weights stay as they are, and so do the operations that autocast keeps in float32.
        compile: compile the extractor by ``torch.compile``, with weights as constants, for one number and size of
            images; images of another size compile anew. Needs a C++ compiler; without one, a warning and no compiling.
        channels_last: the layout of images in memory; ``None`` chooses it for networks of several convolutions.
        batch_size: images at a time; larger batches are split, and a smaller one is filled up if compiled. ``None``
            is 8 on a CPU, where this is faster than more, and the number of images of the check elsewhere.
        min_cosine: the least cosine between an embedding and that of the float32 extractor that is good enough.
        on_low_cosine: ``warn`` or ``raise`` if one of them is below.
        report: called with a sentence on the cosines; ``None`` keeps it to :attr:`FastExtractor.fidelity`.

    Raises:
        ValueError: an argument has none of these values.
    """

    dtype: torch.dtype = torch.float32
    compile: bool = False
    channels_last: bool | None = None
    batch_size: int | None = None
    min_cosine: int | float = 0.999
    on_low_cosine: Literal["warn", "raise"] = "warn"
    report: Callable[[str], None] | None = print

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"Inference needs a dtype out of {', '.join(map(str, _DTYPES))}, got {self.dtype!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"Inference needs a batch_size of 1 or more, or None, got {self.batch_size}.")
        if not -1 <= self.min_cosine <= 1:
            raise ValueError(f"Inference needs a min_cosine between -1 and 1, got {self.min_cosine}.")
        if self.on_low_cosine not in ("warn", "raise"):
            raise ValueError(f"Inference knows on_low_cosine 'warn' and 'raise', got {self.on_low_cosine!r}.")


class Fidelity(NamedTuple):
    """Cosines between embeddings and those of the float32 extractor, image by image."""

    n_images: int
    mean_cosine: float
    min_cosine: float

    def __str__(self) -> str:
        return (
            f"cosine to the float32 extractor on {self.n_images} images: mean {self.mean_cosine:.6f}, "
            f"min {self.min_cosine:.6f}"
        )


class FastExtractor(IExtractor):
    """What :func:`for_inference` makes: gives embeddings in float32, without gradients, in batches of any size.

    Attributes:
        extractor: a copy of the extractor, in evaluation mode.
        inference: how it computes; ``compile`` is ``False`` if compiling has failed.
        fidelity: the cosines that were measured.
    """

    def __init__(self, extractor: IExtractor, images: Float[Tensor, "batch ..."], inference: Inference) -> None:
        super().__init__()
        self.extractor = deepcopy(extractor).eval().requires_grad_(False)
        self.inference = inference
        device = next((parameter.device for parameter in extractor.parameters()), torch.device("cpu"))
        self.batch_size = inference.batch_size or (_CPU_BATCH_SIZE if device.type == "cpu" else len(images))
        convolutional = is_convolutional(self.extractor)
        self.channels_last = convolutional if inference.channels_last is None else inference.channels_last
        images = images.to(device)
        exact = self._exact(images)
        # whatever the type in which the extractor has divided by them, lengths of 1 are to be so in float32
        self._unit_length = bool(((exact.norm(dim=1) - 1).abs() < 1e-4).all())
        if convolutional:
            self._prepare_convolutions(images, exact)
        if self.channels_last:
            self.extractor.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._embed: Callable[[Tensor], Tensor] = self.extractor.extract
        if inference.compile:
            self._compile(images)
        self.eval()
        cosines = _cosines(self.extract(images), exact)
        self.fidelity = Fidelity(len(images), cosines.mean().item(), cosines.min().item())

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self.extractor.feat_dim

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images, in float32."""
        return self.extract(x)

    @torch.no_grad()
    def extract(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images, in float32."""
        embeddings = torch.cat([self._part(part) for part in x.split(self.batch_size)])
        return normalise(embeddings) if self._unit_length else embeddings

    def train(self, mode: bool = True) -> "FastExtractor":
        """Evaluation mode is the only one.

        Raises:
            ValueError: if asked for another.
        """
        if mode:
            raise ValueError("FastExtractor is for inference alone; train the extractor that it was made of.")
        return super().train(False)

    def extra_repr(self) -> str:
        """What ``repr`` shows besides the extractor."""
        return f"{self.inference}, {self.fidelity}"

    def _part(self, x: Tensor) -> Tensor:
        n = len(x)
        if self.inference.compile and n < self.batch_size:  # another size would be compiled anew
            x = torch.cat([x, x.new_zeros(self.batch_size - n, *x.shape[1:])])
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        dtype = self.inference.dtype
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return self._embed(x)[:n].float()

    @torch.no_grad()
    def _exact(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self.extractor.extract(part) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def _prepare_convolutions(self, images: Tensor, exact: Tensor) -> None:
        plain = self.extractor
        self.extractor = deepcopy(plain)
        fold_batch_norms(self.extractor, lambda: self._exact(images[:1]))
        if not _cosines(self._exact(images), exact).min() > 1 - 1e-5:  # it does more with a convolution than normalise
            self.extractor = plain
        if self.inference.dtype != torch.float32:
            round_convolutions(self.extractor, lambda: self._exact(images), self.inference.dtype)

    @torch.no_grad()
    def _compile(self, images: Tensor) -> None:
        import torch._inductor.config
        from torch._dynamo.exc import TorchDynamoException

        # weights are constants for the compiler, which lays them out as its products want them; as an option of
        # torch.compile this would come too late to do anything
        compiled = torch.compile(  # pyright: ignore[reportCallIssue]
            self.extractor.extract, dynamic=False, isolate_recompiles=True
        )
        self._embed = torch._inductor.config.patch(freezing=True)(compiled)
        try:
            self._part(images[: self.batch_size])
        except TorchDynamoException as error:
            cause = " ".join(str(error).split("\n")[:2])
            warnings.warn(
                f"The extractor could not be compiled and works without ({cause}). If a C++ compiler is missing, "
                "install g++ or clang, or set CXX to yours. Inference(compile=False) avoids this warning.",
                stacklevel=5,
            )
            self._embed = self.extractor.extract
            self.inference = replace(self.inference, compile=False)


def _cosines(embeddings: Tensor, exact: Tensor) -> Tensor:
    return torch.cosine_similarity(embeddings.double(), exact.double())


def for_inference(
    extractor: IExtractor, images: Float[Tensor, "batch ..."], inference: Inference | None = None
) -> FastExtractor:
    """A copy of the extractor that computes embeddings faster, once it is checked that they stay what they are.

    The extractor itself stays as it is, and later changes of its weights do not reach the copy. The check compares
    both on ``images`` and reports the cosines: Narrow types change embeddings, and how much depends on the network
    and on the images, so take some tens of yours, transformed as always.

    Args:
        extractor: with weights in float32, on the device where it shall work.
        images: a batch as the extractor takes it, of the size of those to come.
        inference: how to compute; by default in float32, without compiling.

    Raises:
        TypeError: ``images`` is not a tensor.
        ValueError: there are no images, the extractor has weights of other floating types, or a cosine is below
            ``min_cosine`` and ``on_low_cosine`` is ``raise``.

    Example:
        >>> from oml.models import TimmExtractor
        >>> extractor = TimmExtractor(None, "test_convnext")
        >>> images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> fast = for_inference(extractor, images, Inference(dtype=torch.bfloat16, report=None))
        >>> fast.fidelity.min_cosine > 0.999
        True
        >>> fast.extract(images).dtype
        torch.float32
    """
    inference = inference or Inference()
    if not isinstance(images, Tensor):
        raise TypeError(f"for_inference needs images as a tensor, got {type(images).__name__}.")
    if not len(images):
        raise ValueError("for_inference needs images to check the embeddings on, got an empty batch.")
    kinds = {weight.dtype for weight in extractor.parameters() if weight.is_floating_point()}
    if not kinds <= {torch.float32}:
        raise ValueError(
            "for_inference needs an extractor with weights in float32, which embeddings are compared with, got "
            f"{', '.join(sorted(map(str, kinds)))}. Leave them as they are: Inference(dtype=...) is about the copy."
        )
    fast = FastExtractor(extractor, images, inference)
    how = [str(inference.dtype).removeprefix("torch.")]
    how += ["compiled"] * fast.inference.compile + ["channels last"] * fast.channels_last
    sentence = f"Inference in {', '.join(how)}: {fast.fidelity}"
    if not fast.fidelity.min_cosine >= inference.min_cosine:  # NaN, from an overflow, is not good enough
        sentence += f", below the {inference.min_cosine} that is wanted. A wider dtype keeps embeddings closer."
        if inference.on_low_cosine == "raise":
            raise ValueError(sentence)
        warnings.warn(sentence, stacklevel=2)
    elif inference.report is not None:
        inference.report(f"{sentence}.")
    return fast
