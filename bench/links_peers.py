"""Methods of others, by name: PyTorch's hooks as they are, and what is re-enacted in plain torch.

"floor" is nobody's: what others' time of computation is compared with.

Re-enacted methods follow the published code in what is selected, packed and sent, and are written
anew for the CPU; what each leaves out stands in its docstring.
"""

from collections.abc import Callable

from links_built_in import Bf16, Fp16, PowerSGD
from links_floor import Floor
from links_ok_topk import OkTopK
from links_pairs import GraceDgc, GraceTopK, Pairs
from links_peer import Peer
from links_quantized import Cgx, OneBit

PEERS: dict[str, Callable[..., Peer]] = {
    "floor": Floor,
    "fp16": Fp16,
    "bf16": Bf16,
    "powersgd": PowerSGD,
    "pairs": Pairs,
    "grace_topk": GraceTopK,
    "grace_dgc": GraceDgc,
    "ok_topk": OkTopK,
    "cgx": Cgx,
    "one_bit": OneBit,
}
