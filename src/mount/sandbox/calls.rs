//! System calls that a worker that serves does not make.
//!
//! A list of what is forbidden, not of what is allowed: names are looked up by modules of the C
//! library that differ from machine to machine, and a lookup that dies of a call that nobody thought
//! of is an outage. A forbidden call is answered EPERM, so that a mistake here is an error and not the
//! end of a mount.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// What no server of files does.
const FORBIDDEN: &[libc::c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Files by another way than their path.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_setup,
    libc::SYS_quotactl,
    libc::SYS_mknodat,
    // Who we are.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // The kernel and the machine.
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
];

/// The same calls by other numbers: `mknod`, the way to I/O ports, and the x32 ABI, whose calls have a
/// bit of their own (asm/unistd.h, `__X32_SYSCALL_BIT`) and, where they differ, numbers of their own.
#[cfg(target_arch = "x86_64")]
fn also() -> Vec<libc::c_long> {
    const X32: libc::c_long = 0x4000_0000;
    // execve, ptrace, process_vm_readv, process_vm_writev, execveat.
    let own = [520, 521, 539, 540, 545];
    let here = [libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm];
    let twice = FORBIDDEN.iter().chain(&here).map(|call| call | X32);
    let own = own.iter().map(|call| call | X32);
    here.into_iter().chain(twice).chain(own).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn also() -> Vec<libc::c_long> {
    Vec::new()
}

/// The filter for this architecture.
pub(super) fn filter() -> Result<BpfProgram, String> {
    let failed = |e: &dyn std::fmt::Display| format!("seccomp: {e}");
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| failed(&e))?;
    let all = FORBIDDEN.iter().copied().chain(also());
    let rules: BTreeMap<_, Vec<SeccompRule>> = all.map(|call| (call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch);
    let filter = filter.map_err(|e| failed(&e))?;
    BpfProgram::try_from(filter).map_err(|e| failed(&e))
}

/// What this kernel lacks of it.
pub(super) fn unsupported() -> Option<String> {
    let known = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    (!known).then(|| "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)".to_owned())
}

/// From now on, for all threads.
pub(super) fn install(filter: &BpfProgram) -> Result<(), String> {
    seccompiler::apply_filter_all_threads(filter).map_err(|e| format!("seccomp: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_filter_for_this_machine() {
        let filter = filter().unwrap();
        assert!(filter.len() > FORBIDDEN.len());
        assert!(also().iter().all(|call| !FORBIDDEN.contains(call)));
    }
}
