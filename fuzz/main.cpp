// Drives the targets with mutated messages; runs wherever the kernels compile.
//
//   fuzz [--seconds S] [--messages N] [--seed X] [TARGET...]
//
// S seconds for all targets together, or N messages for each, whatever ends first. The i-th message
// is made from the seed X + i alone: what fails is told, with the command that makes it again.
#include <sanitizer/common_interface_defs.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>

#include "target.h"

// All errors end alike, with a stack and what is told on death: UndefinedBehaviorSanitizer's and
// those of EXPECT abort, and AddressSanitizer takes the abort for an error of its own.
extern "C" const char* __asan_default_options() { return "handle_abort=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1"; }

namespace ddp_compress::fuzz {
namespace {

constexpr itimerval kPatience{{}, {20, 0}};  // of the processor's time, not a busy machine's
constexpr int64_t kBatch = 64;               // messages between two looks at the clock

using Clock = std::chrono::steady_clock;

struct Options {
  double seconds = 1e9;
  int64_t messages = INT64_MAX;
  uint64_t seed = 0;
  std::vector<const Target*> targets;
};

struct {
  const char* target = nullptr;
  uint64_t seed = 0;
} now;

void tell() {
  std::fprintf(stderr, "\nagain: build/fuzz/main --messages 1 --seed %llu %s\n",
               static_cast<unsigned long long>(now.seed), now.target);
}

void mutate_once(Bytes& data, const Target& target, Random& random) {
  constexpr uint8_t kSpecial[] = {0, 1, 0x7F, 0x80, 0xFE, 0xFF};
  const int64_t size = std::ssize(data);
  const int64_t at = random.below(size + 1);
  const int64_t length = random.size(std::min<int64_t>(size - at, 16));
  const auto here = data.begin() + at, end = here + length;
  switch (random.below(9)) {
    case 0:
      if (at < size) *here ^= static_cast<uint8_t>(1 << random.below(8));
      break;
    case 1:
      if (at < size) *here = kSpecial[random.below(std::ssize(kSpecial))];
      break;
    case 2:
      if (at < size) std::swap(*here, data[random.below(size)]);
      break;
    case 3:
      std::fill(here, end, random.one_in(2) ? 0xFF : 0);
      break;
    case 4:
      std::generate(here, end, [&] { return static_cast<uint8_t>(random()); });
      break;
    case 5:
      data.erase(here, random.one_in(2) ? end : data.end());
      break;
    case 6: {
      const Bytes copy(here, end);
      data.insert(data.begin() + random.below(size + 1), copy.begin(), copy.end());
      break;
    }
    case 7: {
      const Bytes more = random.bytes(random.size(64));
      data.insert(here, more.begin(), more.end());
      break;
    }
    default: {
      const Bytes other = target.valid(random);
      data.resize(at);
      data.insert(data.end(), other.begin() + std::min(at, std::ssize(other)), other.end());
    }
  }
}

// Runs one mutated message, and now and then what it was before; returns whether it was accepted.
bool run(const Target& target, uint64_t seed) {
  now = {target.name, seed};
  Random random(seed);
  const Bytes valid = target.valid(random);
  if (random.one_in(16)) EXPECT(target.accepts({valid.data(), valid.size()}));
  Bytes input = valid;
  while (input == valid)
    for (int64_t i = random.size(7); i >= 0; --i) mutate_once(input, target, random);
  return target.accepts({input.data(), input.size()});
}

void fuzz(const Target& target, const Options& options) {
  const bool shows = isatty(STDOUT_FILENO);
  const auto start = Clock::now();
  int64_t messages = 0, accepted = 0;
  double seconds = 0, shown = 0;
  while (messages < options.messages && seconds < options.seconds) {
    setitimer(ITIMER_VIRTUAL, &kPatience, nullptr);
    for (const int64_t end = std::min(options.messages, messages + kBatch); messages < end;)
      accepted += run(target, options.seed + static_cast<uint64_t>(messages++));
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (shows && seconds > shown + 1) {
      shown = seconds;
      std::printf("%-14s %12lld ...\r", target.name, static_cast<long long>(messages));
      std::fflush(stdout);
    }
  }
  std::printf("%-14s %12lld %12lld %9.1f\n", target.name, static_cast<long long>(messages),
              static_cast<long long>(accepted), seconds);
  std::fflush(stdout);
}

[[noreturn]] void refuse(const std::string& argument) {
  std::fprintf(stderr, "fuzz: no such target or option: %s\ntargets:", argument.c_str());
  for (const Target* target : kTargets) std::fprintf(stderr, " %s", target->name);
  std::fprintf(stderr, "\noptions: --seconds S, --messages N, --seed X\n");
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto target = std::find_if(std::begin(kTargets), std::end(kTargets),
                                     [&](const Target* each) { return argument == each->name; });
    if (target != std::end(kTargets))
      options.targets.push_back(*target);
    else if (i + 1 == argc)
      refuse(argument);
    else if (argument == "--seconds")
      options.seconds = std::stod(argv[++i]);
    else if (argument == "--messages")
      options.messages = std::stoll(argv[++i]);
    else if (argument == "--seed")
      options.seed = std::stoull(argv[++i]);
    else
      refuse(argument);
  }
  if (options.targets.empty()) options.targets.assign(std::begin(kTargets), std::end(kTargets));
  options.seconds /= static_cast<double>(options.targets.size());
  return options;
}

}  // namespace
}  // namespace ddp_compress::fuzz

int main(int argc, char** argv) {
  using namespace ddp_compress::fuzz;
  const Options options = parse(argc, argv);
  __sanitizer_set_death_callback(tell);
  std::signal(SIGVTALRM, [](int) { std::abort(); });  // a batch without end
  std::printf("%-14s %12s %12s %9s   (seed %llu)\n", "target", "mutated", "accepted", "seconds",
              static_cast<unsigned long long>(options.seed));
  for (const Target* target : options.targets) fuzz(*target, options);
}
