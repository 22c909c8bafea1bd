"""What losses share that need several items of a label in a batch."""

from torch import Tensor, nn

from oml.utils.user_warning import warn_user


class NeedsInstances(nn.Module):
    """A loss of pairs of items with one label."""

    _saw_a_batch = False

    def _look_at_first(self, labels: Tensor) -> None:
        """Warn of a first batch without any pair; later ones are not looked at, so as not to wait for the device."""
        if self._saw_a_batch or labels.is_meta or not len(labels):
            return
        self._saw_a_batch = True
        if len(labels.unique()) == len(labels):
            warn_user(
                f"{type(self).__name__} got a first batch of {len(labels)} items with {len(labels)} labels: without "
                "two items of one label there is nothing to pull together. A batch sampler such as BalanceSampler "
                "forms batches with several instances a label."
            )
