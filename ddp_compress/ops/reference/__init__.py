"""The ops in plain PyTorch: the oracle of the tests, and the fallback where nothing is compiled."""

from ddp_compress.ops.reference.accumulate import accumulate as accumulate
from ddp_compress.ops.reference.ballot import largest as largest
from ddp_compress.ops.reference.ballot import tally as tally
from ddp_compress.ops.reference.ballot import vote_keys as vote_keys
from ddp_compress.ops.reference.elias_fano import elias_fano_decode as elias_fano_decode
from ddp_compress.ops.reference.elias_fano import elias_fano_encode as elias_fano_encode
from ddp_compress.ops.reference.entries import entries_decode as entries_decode
from ddp_compress.ops.reference.golomb import golomb_decode as golomb_decode
from ddp_compress.ops.reference.golomb import golomb_encode as golomb_encode
from ddp_compress.ops.reference.random_words import block_salts as block_salts
from ddp_compress.ops.reference.random_words import hashes as hashes
from ddp_compress.ops.reference.random_words import random_words as random_words
from ddp_compress.ops.reference.random_words import salts as salts
from ddp_compress.ops.reference.random_words import shift_salts as shift_salts
from ddp_compress.ops.reference.rans import rans_decode as rans_decode
from ddp_compress.ops.reference.rans import rans_encode as rans_encode
from ddp_compress.ops.reference.rotated import rotated_add as rotated_add
from ddp_compress.ops.reference.rotated import rotated_decode as rotated_decode
from ddp_compress.ops.reference.rotated import rotated_encode as rotated_encode
from ddp_compress.ops.reference.scatter_add import scatter_add as scatter_add
from ddp_compress.ops.reference.segment_means import segment_means as segment_means
from ddp_compress.ops.reference.signs import sign_add as sign_add
from ddp_compress.ops.reference.signs import sign_decode as sign_decode
from ddp_compress.ops.reference.signs import sign_encode as sign_encode
from ddp_compress.ops.reference.topk import topk as topk
