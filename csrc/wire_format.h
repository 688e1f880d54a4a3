// What the bytes on the wire mean, shared by the CPU and CUDA kernels.
//
// Bits are numbered from the least significant bit of byte 0; a field of several bits stands with
// its low bit first. Numbers of several bytes are little-endian.
//
// Elias-Fano, k slots over n positions, l low bits a position (the l of least total size):
//   [k fields of l bits: the low bits, unused slots 0]
//   [k + ((n-1) >> l) bits: bit (i + (index_i >> l)) is set for the i-th index]
//   padded with 0 to a whole byte. The count of indices is the number of set bits.
//
// Golomb-Rice, for each parameter of m > 0 elements in turn:
//   [bit_width(m) bits: count]  and, where count > 0,
//   [5 bits: b]  then for each index the gap d = index - previous - 1:
//   [d >> b ones, one zero] [b bits: the low bits of d]
//   padded with 0 to a whole byte after the last parameter.
//
// rANS, K > 0 symbols of an alphabet of A (no bytes where K = 0):
//   [A bits: bit s is set where symbol s occurs]
//   [12 bits for each symbol that occurs, but for the last: its frequency - 1]
//   padded with 0 to a whole byte; the last frequency is what is left of 4096. Then, unless one
//   symbol stands alone,
//   [4 bytes: the decoder's first state] [the bytes that it draws while below 2**23]
//   and it ends in the state 2**23.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire format is little-endian; this machine is not"
#endif

namespace ddp_compress {

// Negative results of the decoders; codec/ turns them into the words of a ValueError.
enum DecodeError : int64_t {
  kTruncated = -1,     // the bytes end before the positions do
  kOutOfRange = -2,    // a position lies outside its tensor
  kNotAscending = -3,  // positions must ascend strictly
  kTooMany = -4,       // more positions than the layout can hold
  kDirtyPadding = -5,  // unused bits must be zero
  kBadTable = -6,      // frequencies must leave some for every symbol
  kBadState = -7,      // a state lies outside its range, or the last is not the encoder's first
  kBadValues = -8,     // too few or too many, not finite, or at positions of no group
};

inline uint64_t load_u64(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

}  // namespace ddp_compress
