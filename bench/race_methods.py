"""Who races: arguments of `examples/train.py`, and the learning rates that each may try."""

from dataclasses import dataclass

PERIOD = 10  # local steps of those that take any
RATES = {"lm": (0.2, 0.3, 0.45), "image": (0.03, 0.05, 0.08)}  # learning rates, by the task


@dataclass(frozen=True)
class Method:
    """One of the racers.

    Args:
        name: in tables, files and on the command line.
        options: of `examples/train.py`.
        warmup: steps of a density's way down, or of a dense start; below 1 their share of all.
    """

    name: str
    options: str
    warmup: float = 0

    @property
    def period(self) -> int:
        """Steps from one exchange to the next."""
        return PERIOD if "--period" in self.options else 1

    def warmup_steps(self, steps: int) -> int:
        """Of a run of so many steps; of a short one, a quarter at most."""
        wanted = self.warmup * steps if self.warmup < 1 else self.warmup
        return min(int(wanted), steps // 4)


DENSITY = 1 / 6  # share of the steps in which a density falls
FROM = "--warmup-density 0.05"
HALF = f"{FROM} --set value_dtype=float16"
DENSE = 0.1  # share of the steps before PowerSGD and post-local SGD begin
LOCAL = f"--period {PERIOD}"

METHODS = {
    each.name: each
    for each in (
        Method("dense", "--recipe none"),
        Method("fp16", "--recipe fp16"),
        Method("powersgd-1", "--recipe powersgd --set rank=1", DENSE),
        Method("powersgd-2", "--recipe powersgd --set rank=2", DENSE),
        Method("powersgd-4", "--recipe powersgd --set rank=4", DENSE),
        Method("powersgd-4-at-once", "--recipe powersgd --set rank=4", 2),  # as soon as it can
        Method("post-local-sgd", f"--recipe post_local_sgd {LOCAL}", DENSE),
        Method("topk-1%", f"--recipe topk --density 0.01 {HALF}", DENSITY),
        Method("topk-0.1%", f"--recipe topk --density 0.001 {HALF}", DENSITY),
        Method("dgc-1%", f"--recipe dgc --density 0.01 {HALF}", DENSITY),
        Method("dgc-1%-at-once", f"--recipe dgc --density 0.01 {HALF}"),  # no warm-up
        Method("sbc-1%", f"--recipe sbc --density 0.01 {FROM}", DENSITY),
        Method("hgc-1%", f"--recipe hgc --density 0.01 {FROM}", DENSITY),
        Method(
            "vote-1%",
            f"--recipe majority_vote --density 0.01 {FROM} --set variant=add_drop value_bits=4",
            DENSITY,
        ),
        Method("rotated-4bit", "--recipe rotated --set bits=4"),
        Method("sbc2-1%", f"--recipe sbc --density 0.01 {FROM} {LOCAL}", DENSITY),
        Method("sbc2-diloco", f"--recipe sbc --density 0.01 {FROM} {LOCAL} --diloco", DENSITY),
        Method("fedavg", f"--recipe topk --density 1 --set exchange=union {LOCAL}"),
    )
}
# PyTorch's own 16-bit hooks. DDP refuses `bf16_compress_hook` where it was built without NCCL.
SIXTEEN_BIT = ("fp16",)
