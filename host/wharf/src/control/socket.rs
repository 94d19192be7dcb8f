//! The socket's file: who may have it, and when it may be replaced.
//!
//! A socket's file outlives a process that is killed, and nothing about the file
//! tells whether somebody still listens. So its owner holds a lock on `PATH.lock`,
//! which the kernel releases with the process, however it ends: whoever has the
//! lock may remove the socket and make it anew, and of two who start at once one
//! gets it. The lock's file stays, because removing it would let a third lock a
//! new file while a second waits for the old one.
//!
//! The mode is set before the socket has a name: `bind` gives the file the mode
//! that the unnamed socket has (less the umask), so that there is no moment in
//! which another user could connect, and no umask, which is the whole process's,
//! has to be changed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::error::ControlError;
use crate::cell::{ControlFiles, write_holder};

/// Bytes of a path that a socket's address has room for (unix(7), `sun_path`,
/// less the zero at the end).
pub(super) const PATH_MAX: usize = 107;

/// How long to wait for a lock: one that ends removes its socket first and gives
/// up the lock a moment later.
const PATIENCE: Duration = Duration::from_millis(500);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening socket. Its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Whether the file is this process's to remove.
    is_ours: bool,
    /// Held as long as the file is ours. The last field: dropped last.
    lock: File,
}

impl Socket {
    /// Listens at `path`, in place of a socket that somebody left behind.
    pub(super) fn listen(path: &Path) -> Result<Self, ControlError> {
        // Before the lock's file is made, which stays.
        check(path)?;
        let lock = lock(path)?;
        clear(path)?;
        let listener = listener(path).map_err(|source| ControlError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            is_ours: true,
            lock,
        })
    }

    /// The socket of another process, with its lock. It is that one's until it is
    /// [owned](SharedSocket::own).
    pub(super) fn take_over(files: ControlFiles) -> Result<Self, ControlError> {
        let ControlFiles {
            path,
            listener,
            lock,
            ..
        } = files;
        let lock = File::from(lock);
        write_holder(&lock).map_err(|source| ControlError::Lock {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            listener: UnixListener::from(listener),
            is_ours: false,
            lock,
        })
    }

    /// What another process needs to serve it.
    pub(super) fn files(&self, config: Option<String>) -> io::Result<ControlFiles> {
        Ok(ControlFiles {
            path: self.path.clone(),
            listener: self.listener.try_clone()?.into(),
            lock: self.lock.try_clone()?.into(),
            config,
        })
    }

    /// The listener, which does not block.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A socket that the server and whoever hands it over have in common.
#[derive(Clone, Debug)]
pub(super) struct SharedSocket(Arc<Mutex<Option<Socket>>>);

impl SharedSocket {
    pub(super) fn new(socket: Socket) -> Self {
        Self(Arc::new(Mutex::new(Some(socket))))
    }

    /// As [`Socket::files`].
    pub(super) fn files(&self, config: Option<String>) -> io::Result<ControlFiles> {
        match self.lock().as_ref() {
            Some(socket) => socket.files(config),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// It is this process's from now on, which removes its file in the end.
    pub(super) fn own(&self) {
        if let Some(socket) = self.lock().as_mut() {
            socket.is_ours = true;
        }
    }

    /// Leaves it to another process, which serves it: nothing of it stays here.
    pub(super) fn leave(&self) {
        if let Some(mut socket) = self.lock().take() {
            socket.is_ours = false;
        }
    }

    /// Closes it, and removes its file if that is this process's.
    pub(super) fn close(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a socket can be made at `path`, as far as its name and what is there tell.
/// Makes nothing.
pub(super) fn check(path: &Path) -> Result<(), ControlError> {
    let length = path.as_os_str().len();
    let path = path.to_owned();
    if length > PATH_MAX {
        return Err(ControlError::PathTooLong { path, length });
    }
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ControlError::NotASocket { path }),
        // What cannot be looked at is for the lock to find.
        _ => Ok(()),
    }
}

/// Takes the lock beside `path` and writes into it who has it.
fn lock(path: &Path) -> Result<File, ControlError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |source| ControlError::Lock {
        path: lock_path.clone(),
        source,
    };
    // It is written to, so it must not be a way to another file, which somebody put
    // there whose the directory is, too.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&lock_path)
        .map_err(failed)?;
    let is_own = |metadata: &fs::Metadata| metadata.is_file() && metadata.nlink() == 1;
    if !file.metadata().is_ok_and(|metadata| is_own(&metadata)) {
        return Err(failed(io::Error::other("it is not a file of its own")));
    }
    let deadline = Instant::now().checked_add(PATIENCE);
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if deadline.is_some_and(|at| Instant::now() < at) => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Without a pid the message is poorer, and still true.
                let _ = file.read_to_string(&mut pid);
                return Err(ControlError::InUse {
                    path: path.to_owned(),
                    pid: pid.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    write_holder(&file).map_err(failed)?;
    Ok(file)
}

/// Removes a socket that nobody listens at. To be called with the lock.
fn clear(path: &Path) -> Result<(), ControlError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(_) => return Ok(()), // bind says it better
    };
    let path = path.to_owned();
    if !kind.is_socket() {
        return Err(ControlError::NotASocket { path });
    }
    // Something that knows nothing of the lock may listen there.
    if UnixStream::connect(&path).is_ok() {
        return Err(ControlError::InUse { path, pid: None });
    }
    log::info!("removing {}, which nobody listens at", path.display());
    fs::remove_file(&path).map_err(|source| ControlError::Listen { path, source })
}

fn listener(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(
        socket.as_raw_fd(),
        &UnixAddr::new(path.as_os_str().as_bytes())?,
    )?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Barrier;
    use std::thread;

    use super::{ControlError, SharedSocket, Socket};

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = Socket::listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        Socket::listen(&path).unwrap();
    }

    /// Of two processes that have it at once, only the owner removes it.
    #[test]
    fn it_is_the_others_until_it_is_owned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let old = SharedSocket::new(Socket::listen(&path).unwrap());
        let passed = || SharedSocket::new(Socket::take_over(old.files(None).unwrap()).unwrap());
        passed().close();
        UnixStream::connect(&path).unwrap();
        let new = passed();
        new.own();
        old.leave();
        UnixStream::connect(&path).unwrap();
        let refused = Socket::listen(&path).unwrap_err();
        assert!(matches!(refused, ControlError::InUse { .. }), "{refused}");
        // With the last of them, everything is free, whatever else the other still does.
        new.close();
        assert!(!path.exists() && old.files(None).is_err());
        Socket::listen(&path).unwrap();
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = Socket::listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_in_use_is_refused_and_its_holder_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _socket = Socket::listen(&path).unwrap();
        let error = Socket::listen(&path).unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, ControlError::InUse { pid: Some(p), .. } if p == pid));
        assert!(error.to_string().contains(&format!("process {pid} serves")));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_others_put_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("foreign");
        let _listener = UnixListener::bind(&foreign).unwrap();
        let error = Socket::listen(&foreign).unwrap_err();
        assert!(matches!(error, ControlError::InUse { pid: None, .. }));
        let file = directory.path().join("file");
        fs::write(&file, "mine").unwrap();
        let error = Socket::listen(&file).unwrap_err();
        assert!(matches!(error, ControlError::NotASocket { .. }));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        let places = ["/dev/null".as_ref(), directory.path(), &file];
        for path in places {
            let error = Socket::listen(path).unwrap_err();
            assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
            let mut lock = path.as_os_str().to_owned();
            lock.push(".lock");
            assert!(!std::path::Path::new(&lock).exists(), "{lock:?}");
        }
    }

    #[test]
    fn a_lock_that_leads_elsewhere_is_refused_and_nothing_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = directory.path().join("s");
        let lock = directory.path().join("s.lock");
        let put: [&dyn Fn(); 3] = [
            &|| std::os::unix::fs::symlink(&victim, &lock).unwrap(),
            &|| fs::hard_link(&victim, &lock).unwrap(),
            &|| nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        ];
        for put in put {
            put();
            let error = Socket::listen(&path).unwrap_err();
            assert!(matches!(error, ControlError::Lock { .. }), "{error}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
            fs::remove_file(&lock).unwrap();
        }
        // A socket that is a link is not ours to remove, wherever it leads.
        for target in ["nowhere", "victim"] {
            std::os::unix::fs::symlink(directory.path().join(target), &path).unwrap();
            let error = Socket::listen(&path).unwrap_err();
            assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn of_two_that_start_at_once_one_gets_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let barrier = Barrier::new(2);
        let start = || {
            barrier.wait();
            Socket::listen(&path)
        };
        let (one, two) = thread::scope(|scope| {
            let (one, two) = (scope.spawn(start), scope.spawn(start));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_long_path_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(120));
        let error = Socket::listen(&path).unwrap_err().to_string();
        assert!(error.contains("the kernel takes 107"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
