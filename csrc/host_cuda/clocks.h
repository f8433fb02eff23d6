// Vector clocks. Agents are what can touch memory on its own: threads, and the asynchronous copies and products they
// start. An access by agent a at a's time t has happened for whoever has seen a's time t.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ik::host_cuda {

using Agent = uint16_t;
using Time = uint32_t;
constexpr Agent kNobody = 0xffff;

// What has happened (`seen`), and which part of it a fence has made visible to the asynchronous proxy (`fenced`).
class Knowledge {
 public:
  void reset(size_t agents) {
    seen_.assign(agents, 0);
    fenced_.assign(agents, 0);
  }
  void clear() { reset(0); }

  void learn(const Knowledge& other) {
    grow(other.seen_.size());
    for (size_t i = 0; i < other.seen_.size(); ++i) seen_[i] = std::max(seen_[i], other.seen_[i]);
    for (size_t i = 0; i < other.fenced_.size(); ++i) fenced_[i] = std::max(fenced_[i], other.fenced_[i]);
  }
  void learn(Agent agent, Time time) {
    grow(agent + size_t{1});
    seen_[agent] = std::max(seen_[agent], time);
  }
  // Forgets what `other` does not know.
  void intersect(const Knowledge& other) {
    for (size_t i = 0; i < seen_.size(); ++i) {
      seen_[i] = std::min(seen_[i], other.seen(static_cast<Agent>(i)));
      fenced_[i] = std::min(fenced_[i], other.fenced(static_cast<Agent>(i)));
    }
  }
  // A proxy fence: everything known is now visible to asynchronous copies and products.
  void fence() { fenced_ = seen_; }

  Time seen(Agent agent) const { return agent < seen_.size() ? seen_[agent] : 0; }
  Time fenced(Agent agent) const { return agent < fenced_.size() ? fenced_[agent] : 0; }

 private:
  void grow(size_t agents) {
    if (seen_.size() >= agents) return;
    seen_.resize(agents, 0);
    fenced_.resize(agents, 0);
  }

  std::vector<Time> seen_;
  std::vector<Time> fenced_;
};

// Who touches memory: an agent at a time of its own, on the ground of what it knows.
struct Accessor {
  Agent agent;
  Time time;
  const Knowledge* knowledge;
  bool asynchronous;  // its accesses are not ordered among each other, and need a proxy fence behind plain writes
};

}  // namespace ik::host_cuda
