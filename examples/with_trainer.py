"""The Trainer of Hugging Face's transformers: compression is one more callback.

torchrun --nproc_per_node=2 examples/with_trainer.py
torchrun --nproc_per_node=2 examples/with_trainer.py --steps 120     # goes on from the last one
"""

import argparse
import os

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from data import standard_library
from ddp_compress.integrations.transformers import CompressionCallback  # <- compression

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()

torch.manual_seed(0)
# To fine-tune: AutoModelForCausalLM.from_pretrained("gpt2"), and its tokenizer's ids for bytes.
config = GPT2Config(
    vocab_size=256,
    n_positions=64,
    n_embd=64,
    n_layer=2,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = GPT2LMHeadModel(config)
options = TrainingArguments(
    "runs/trainer",
    max_steps=args.steps,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=10,
    logging_steps=10,
    save_steps=20,
    ddp_find_unused_parameters=False,
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
compression = CompressionCallback("topk", density=0.01)  # <- compression
text = torch.frombuffer(bytearray(standard_library()[: 8000 * 64]), dtype=torch.uint8)
windows = [{"input_ids": each, "labels": each} for each in text.long().view(-1, 64)]
trainer = Trainer(model, options, train_dataset=windows, callbacks=[compression])  # <- compression
last = get_last_checkpoint("runs/trainer") if os.path.isdir("runs/trainer") else None
trainer.train(resume_from_checkpoint=last)  # its log has figures named compression/...
