// `_keep_tiles.so`, loaded into CRIU (LD_PRELOAD): ask for leave to use AMX's tiles before it makes a process.
//
// A kernel gives that leave to a process and those that it forks, not across execve (fpu_clone and fpstate_reset in
// arch/x86/kernel/fpu; Documentation/arch/x86/xstate.rst). CRIU 4.2 does not restore it: copies of a server that uses
// tiles died at the first instruction of theirs. The tiles' content is not restored either, and need not be: who
// waits for a request has none in use. Where a processor has no tiles nothing happens.

#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, asm/prctl.h
constexpr long kTileData = 18;               // XFEATURE_XTILE_DATA

[[gnu::constructor]] void ask() {
#ifdef __x86_64__
    syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#endif
}

}  // namespace
