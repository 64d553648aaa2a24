"""Batches of a task, as a run has them."""

from miniformer.data.datamodule import MiniFormerDataModule


def batches_of(task, records, tokenizer, *, training=False, **options):
    """All batches of the records, in training or validation mode."""
    data = MiniFormerDataModule(
        records, val_path=records, task=task, tokenizer=tokenizer, **options
    )
    return list(data.train_dataloader() if training else data.val_dataloader())
