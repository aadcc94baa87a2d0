// `_merge_pages PROGRAM ARGUMENT...`: become PROGRAM, whose identical pages the kernel may merge with those of other
// such programs (PR_SET_MEMORY_MERGE, Linux 6.4; mm/ksm).
//
// A program of its own, because the flag belongs to a whole address space and goes from there to whatever is forked
// and executed: set in the caller it would reach all its other children.

#include <cstdio>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

int main(int count, char **arguments) {
    if (count < 2) {
        std::fprintf(stderr, "usage: %s PROGRAM [ARGUMENT...]\n", arguments[0]);
        return 2;
    }
    if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0) {
        std::perror("PR_SET_MEMORY_MERGE");
        return 126;  // what a shell says of a program that cannot be run here
    }
    execv(arguments[1], arguments + 1);
    std::perror(arguments[1]);
    return 127;
}
