"""verl's multi-turn SFT data set for `sft.parquet` of `gradprism export verl`: tools and calls as they were, turns that are not trained on.

    data.custom_cls.path=EXPORT/gradprism_verl.py data.custom_cls.name=GradprismSFTDataset

The export puts a copy of this file beside the data, since verl reads it where gradprism may not be installed. Written for verl 0.9.
"""

# pyright: reportMissingImports=false

import json

import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset


class GradprismSFTDataset(MultiTurnSFTDataset):
    """Decodes messages and tools that are JSON text, and trains on no turn whose `loss_mask` is 0."""

    def _read_files_and_process(self):
        super()._read_files_and_process()
        if self.tools is not None:
            self.tools = [json.loads(tools) if isinstance(tools, str) else None for tools in self.tools]

    def _build_messages(self, example):
        messages = example[self.messages_key]
        decoded = json.loads(messages) if isinstance(messages, str) else messages
        return super()._build_messages({**example, self.messages_key: decoded})

    def _process_single_message(self, index, message, *arguments, **options):
        message = dict(message)
        trained = message.pop("loss_mask", 1)
        input_ids, loss_mask, *rest = super()._process_single_message(index, message, *arguments, **options)
        return input_ids, loss_mask if trained else torch.zeros_like(loss_mask), *rest
