//! System calls that no safe wrapper has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The size of an ordinary page.
pub(crate) fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// How many pages of a file are in the page cache.
///
/// # Errors
/// Linux before 6.5 does not have the call, and a seccomp filter may not know it.
pub(crate) fn pages_cached(file: BorrowedFd<'_>) -> io::Result<u64> {
    /// The same number on every architecture.
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        /// Zero stands for the rest of the file.
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct CacheStat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { offset: 0, len: 0 };
    let mut stat = CacheStat::default();
    // SAFETY: the kernel reads `range` and fills `stat`, which have the layout of its own structs, live on this
    // stack during the call, and are not kept. It looks at the file and changes nothing.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    if result == 0 { Ok(stat.cached) } else { Err(io::Error::last_os_error()) }
}

/// How many pages of mapped bytes are in memory.
pub(crate) fn pages_resident(bytes: &[u8]) -> io::Result<u64> {
    let page = page_bytes() as usize;
    let skip = bytes.as_ptr().addr() % page;
    let mut flags = vec![0u8; (skip + bytes.len()).div_ceil(page)];
    // SAFETY: the range, from the page in which the bytes begin, is mapped as long as they are borrowed; the
    // kernel only looks at it, and writes one byte for each of its pages, for which `flags` has room.
    let result = unsafe {
        libc::mincore(bytes.as_ptr().sub(skip).cast_mut().cast(), skip + bytes.len(), flags.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags.iter().filter(|&&flag| flag & 1 != 0).count() as u64)
}

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

/// Maps that are watched for SIGBUS: what a map raises when its file has become shorter, or its disk can't be read.
///
/// The handler belongs to the process, so it is installed only on request, once, and hands on whatever is not
/// about a watched map to the handler that was there before. Whoever installs another one later and does not
/// hand on ours switches the watch off.
pub(crate) mod sigbus {
    use std::io;
    use std::ops::Range;
    use std::ptr;
    use std::sync::Mutex;
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

    /// How many maps can be watched at once, in the whole process.
    pub(crate) const WATCHES_MAX: usize = 8192;

    /// One watched range.
    ///
    /// A sequence lock: `version` is odd while `start` and `end` change. The handler takes no lock: a slot in
    /// change is not about the faulting address, since whoever faults there keeps its map, and so its slot.
    struct Slot {
        version: AtomicU32,
        start: AtomicUsize,
        end: AtomicUsize,
        /// Written by the handler, read by whoever has scanned.
        faulted: AtomicBool,
    }

    #[allow(clippy::declare_interior_mutable_const, reason = "only there to fill the table")]
    const FREE: Slot = Slot {
        version: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    };
    static SLOTS: [Slot; WATCHES_MAX] = [FREE; WATCHES_MAX];
    /// No slot from here on was ever used.
    static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);
    /// The numbers of free slots below `SLOTS_USED`. Not touched by the handler.
    static FREE_SLOTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    /// What was installed before us; null before we are. What it points to is never freed.
    static FORMER: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
    static INSTALLING: Mutex<bool> = Mutex::new(false);

    /// A range that is watched while this lives.
    #[derive(Debug)]
    pub(crate) struct Watch {
        slot: usize,
    }

    impl Watch {
        /// Watches a read-only map: a page of it that can't be had becomes a page of zeros, and is remembered.
        ///
        /// # Errors
        /// The handler can't be installed, or too many maps are watched.
        ///
        /// # Safety
        /// The range is a whole mapping of the caller's own, read-only, and stays mapped as long as the watch
        /// lives. Nothing else is ever mapped there meanwhile.
        pub(crate) unsafe fn new(range: Range<usize>) -> io::Result<Watch> {
            install()?;
            let slot = free_slots().pop().map_or_else(
                || {
                    let next = SLOTS_USED.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                        (used < WATCHES_MAX).then_some(used + 1)
                    });
                    let full =
                        |_| io::Error::other(format!("{WATCHES_MAX} maps are watched for SIGBUS already"));
                    next.map_err(full)
                },
                Ok,
            )?;
            SLOTS[slot].set(range);
            Ok(Watch { slot })
        }

        /// Whether a page of it was replaced.
        pub(crate) fn has_faulted(&self) -> bool {
            SLOTS[self.slot].faulted.load(Ordering::Acquire)
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            SLOTS[self.slot].set(0..0);
            free_slots().push(self.slot);
        }
    }

    impl Slot {
        /// Only the owner of the slot calls it, and there is one at a time.
        fn set(&self, range: Range<usize>) {
            self.version.fetch_add(1, Ordering::AcqRel);
            self.start.store(range.start, Ordering::SeqCst);
            self.end.store(range.end, Ordering::SeqCst);
            self.faulted.store(false, Ordering::SeqCst);
            self.version.fetch_add(1, Ordering::AcqRel);
        }

        fn holds(&self, address: usize) -> bool {
            let version = self.version.load(Ordering::SeqCst);
            let range = self.start.load(Ordering::SeqCst)..self.end.load(Ordering::SeqCst);
            range.contains(&address)
                && version.is_multiple_of(2)
                && self.version.load(Ordering::SeqCst) == version
        }
    }

    fn free_slots() -> std::sync::MutexGuard<'static, Vec<usize>> {
        FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install() -> io::Result<()> {
        let mut installed = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if *installed {
            return Ok(());
        }
        // SAFETY: all zeros is a valid `sigaction`; the calls fill or read whole ones that live here. The former
        // action is kept for good before ours is there, so the handler always finds it.
        unsafe {
            let mut former: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &mut former) != 0 {
                return Err(io::Error::last_os_error());
            }
            FORMER.store(Box::into_raw(Box::new(former)), Ordering::Release);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = handle as *const () as usize;
            // On the alternate stack, where the thread has one, as the handlers of language runtimes want it; and
            // with the signals blocked that the former one wants blocked.
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | (former.sa_flags & libc::SA_NODEFER);
            ours.sa_mask = former.sa_mask;
            if libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        *installed = true;
        Ok(())
    }

    /// Runs inside of the signal: no lock, no memory, nothing but atomics and plain system calls.
    extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel hands a valid `siginfo_t` to a handler that was installed with SA_SIGINFO, and for the
        // two codes below it has an address.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        if matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) && replace_page(address) {
            return; // The access is done again, and finds zeros.
        }
        hand_on(signal, info, context, code);
    }

    fn replace_page(address: usize) -> bool {
        let used = SLOTS_USED.load(Ordering::Acquire);
        let Some(slot) = SLOTS[..used].iter().find(|slot| slot.holds(address)) else { return false };
        // First the flag: whoever sees the zeros sees it too.
        slot.faulted.store(true, Ordering::Release);
        let page = rustix::param::page_size();
        // SAFETY: the page lies in a mapping that `Watch::new` was promised to be ours, read-only and mapped while
        // watched; who faulted in it keeps it so. No byte of the page could be read, so none that was seen
        // changes. `mmap` is one system call here, and its errno is put back, as the interrupted code expects.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let mapped = libc::mmap(
                (address & !(page - 1)) as *mut libc::c_void,
                page,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            *errno = before;
            mapped != libc::MAP_FAILED
        }
    }

    /// What would have happened without us.
    fn hand_on(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
        code: libc::c_int,
    ) {
        // What a thread has caused itself can't be ignored: the kernel ends the process then.
        let is_own_fault = code > 0;
        // SAFETY: `FORMER` was set before this handler was installed, and what it points to is never freed or
        // changed. A handler that stood in it was installed for this signal, with the signature that its flags
        // tell, and is called with what the kernel has handed to us. `sigaction` and `raise` may be called here.
        unsafe {
            let former = &*FORMER.load(Ordering::Acquire);
            match former.sa_sigaction {
                libc::SIG_IGN if !is_own_fault => {}
                libc::SIG_DFL | libc::SIG_IGN => {
                    let mut default: libc::sigaction = std::mem::zeroed();
                    default.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(signal, &default, ptr::null_mut());
                    // A fault comes again by itself when the access is done again; what somebody sent does not.
                    if !is_own_fault {
                        libc::raise(signal);
                    }
                }
                handler if former.sa_flags & libc::SA_SIGINFO != 0 => {
                    type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                    std::mem::transmute::<usize, Full>(handler)(signal, info, context);
                }
                handler => {
                    std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::os::fd::{AsRawFd, OwnedFd};
        use std::os::unix::process::ExitStatusExt;
        use std::process::{Command, Stdio};

        use super::*;

        const ROLE: &str = "PELTON_TEST_SIGBUS";

        /// A map of a file that has lost its second page.
        fn broken_map() -> (memmap2::Mmap, OwnedFd) {
            let page = rustix::param::page_size();
            let file = rustix::fs::memfd_create("broken", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, 2 * page as u64).unwrap();
            rustix::io::pwrite(&file, &[7; 10], 0).unwrap();
            // SAFETY: the file is cut, after which only its second page is read, by tests of what happens then.
            let map = unsafe { memmap2::Mmap::map(file.as_raw_fd()).unwrap() };
            rustix::fs::ftruncate(&file, page as u64).unwrap();
            (map, file)
        }

        fn watch(map: &memmap2::Mmap) -> Watch {
            let start = map.as_ptr().addr();
            // SAFETY: the map is whole, read-only, and dropped after the watch in every test.
            unsafe { Watch::new(start..start + map.len()).unwrap() }
        }

        fn touch(map: &memmap2::Mmap) -> u8 {
            std::hint::black_box(map)[map.len() - 1]
        }

        extern "C" fn leave_with_42(_: libc::c_int) {
            // SAFETY: `_exit` ends the process and nothing else.
            unsafe { libc::_exit(42) };
        }

        extern "C" fn leave_with_address(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
            // SAFETY: as above; the kernel's `info` has an address for a fault.
            unsafe { libc::_exit(if (*info).si_addr().is_null() { 1 } else { 43 }) };
        }

        fn set_former(handler: usize, flags: libc::c_int) {
            // SAFETY: all zeros is a valid action; the handlers are those above, or the kernel's own two.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler;
                action.sa_flags = flags;
                assert_eq!(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()), 0);
            }
        }

        /// What runs in a process of its own, since the handler is the process's and some of it ends there.
        #[test]
        fn child_meets_sigbus() {
            let Ok(role) = std::env::var(ROLE) else { return };
            match role.as_str() {
                "default" | "sent" => set_former(libc::SIG_DFL, 0),
                "ignored" | "sent-ignored" => set_former(libc::SIG_IGN, 0),
                "plain" => set_former(leave_with_42 as *const () as usize, 0),
                "full" => set_former(leave_with_address as *const () as usize, libc::SA_SIGINFO),
                _ => {} // What Rust's runtime has installed.
            }
            let (map, _file) = broken_map();
            let (other, _other_file) = broken_map();
            let watch_of_map = watch(&map);
            assert!(!watch_of_map.has_faulted());
            assert_eq!((touch(&map), map[0]), (0, 7), "a page of zeros; what was there stays");
            assert!(watch_of_map.has_faulted());
            drop(watch_of_map);
            match role.as_str() {
                "ours" => {}
                "sent" | "sent-ignored" => {
                    // SAFETY: sends a signal to this process, for which it has a handler.
                    unsafe { libc::raise(libc::SIGBUS) };
                }
                _ => _ = touch(&other),
            }
            std::process::exit(0);
        }

        #[test]
        fn faults_in_our_maps_are_caught_and_others_go_where_they_went_before() {
            let module = module_path!().split_once("::").expect("below the crate").1;
            let run = |role: &str| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "--nocapture", &format!("{module}::child_meets_sigbus")])
                    .env(ROLE, role)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap()
            };
            for (role, code, signal) in [
                ("ours", Some(0), None),
                ("runtime", None, Some(libc::SIGBUS)),
                ("default", None, Some(libc::SIGBUS)),
                ("ignored", None, Some(libc::SIGBUS)),
                ("sent", None, Some(libc::SIGBUS)),
                ("sent-ignored", Some(0), None),
                ("plain", Some(42), None),
                ("full", Some(43), None),
            ] {
                let status = run(role);
                assert_eq!((status.code(), status.signal()), (code, signal), "{role}");
            }
        }

        #[test]
        fn slots_are_used_again() {
            let (map, _file) = broken_map();
            let first = watch(&map).slot;
            let again: Vec<usize> = (0..WATCHES_MAX * 2).map(|_| watch(&map).slot).collect();
            // Other tests of this process may take some, but not all that were given back.
            assert!(again.iter().all(|&slot| slot < WATCHES_MAX) && first < WATCHES_MAX);
        }
    }
}

/// Forbids io_uring to a command that is yet to be started, and to nobody else.
#[cfg(test)]
pub(crate) fn forbid_io_uring(command: &mut std::process::Command) {
    // `io_uring_setup`, `io_uring_enter` and `io_uring_register`: the same on every architecture.
    forbid_calls(command, 425..=427);
}

/// Forbids system calls to a command that is yet to be started: they answer `EPERM` in it, as in a container with the
/// usual filter.
#[cfg(test)]
pub(crate) fn forbid_calls(command: &mut std::process::Command, calls: std::ops::RangeInclusive<u32>) {
    use std::os::unix::process::CommandExt;

    // `if calls.contains(number) { EPERM } else { allow }`, as the kernel's filter machine has it. The
    // number of the call is the first word of what a filter sees.
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const fn line(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    let filter: [libc::sock_filter; 5] = [
        line(LOAD_WORD, 0, 0, 0),
        line(JUMP_AT_LEAST, 0, 2, *calls.start()),
        line(JUMP_ABOVE, 1, 0, *calls.end()),
        line(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: `prctl` reads the program and its five lines, which live as long as the call, and keeps copies.
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
