//! System calls that no safe wrapper has.

use std::time::Duration;

/// What a thread has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadUsage {
    pub(crate) cpu: Duration,
    /// Page faults that waited for a disk.
    pub(crate) faults_major: u64,
    /// Page faults that did not.
    pub(crate) faults_minor: u64,
}

impl ThreadUsage {
    /// The calling thread's.
    pub(crate) fn now() -> ThreadUsage {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call fills the struct it is given, which is as long as it expects. All zeros are a valid
        // value of it, so it may be read whatever the call answers.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
            usage.assume_init()
        };
        let time = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
        };
        ThreadUsage {
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            faults_major: usage.ru_majflt as u64,
            faults_minor: usage.ru_minflt as u64,
        }
    }

    /// What it has used since an earlier look.
    pub(crate) fn since(self, before: ThreadUsage) -> ThreadUsage {
        ThreadUsage {
            cpu: self.cpu.saturating_sub(before.cpu),
            faults_major: self.faults_major.saturating_sub(before.faults_major),
            faults_minor: self.faults_minor.saturating_sub(before.faults_minor),
        }
    }
}

/// Forbids io_uring to a command that is yet to be started, and to nobody else.
///
/// The three calls of io_uring answer `EPERM` in it, as in a container with the usual filter.
#[cfg(test)]
pub(crate) fn forbid_io_uring(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;

    /// `io_uring_setup`, `io_uring_enter` and `io_uring_register`: the same on every architecture.
    const CALLS: std::ops::RangeInclusive<u32> = 425..=427;
    // `if CALLS.contains(number) { EPERM } else { allow }`, as the kernel's filter machine has it. The
    // number of the call is the first word of what a filter sees.
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const fn line(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    const FILTER: [libc::sock_filter; 5] = [
        line(LOAD_WORD, 0, 0, 0),
        line(JUMP_AT_LEAST, 0, 2, *CALLS.start()),
        line(JUMP_ABOVE, 1, 0, *CALLS.end()),
        line(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = || {
        let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
        // SAFETY: `prctl` reads the program and its five lines, which are constants, and keeps copies.
        // An ordinary process may install a filter once it has given up gaining privileges.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only what is safe in a signal handler may be called. `install` makes
    // two system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
}
