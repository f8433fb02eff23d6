// Which mutant is active, and which have been executed.
#include <cstring>

namespace {

constexpr int kMost = 1 << 16;
int active = -1;
unsigned char executed[kMost];

}  // namespace

extern "C" {

bool ik_mutant(int number) {
  executed[number] = 1;
  return number == active;
}
void ik_activate(int number) { active = number; }
void ik_forget_executed() { memset(executed, 0, sizeof executed); }
const unsigned char* ik_executed() { return executed; }
}
