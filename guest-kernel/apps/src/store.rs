//! A database that one task works on, for any number of others.
//!
//! Changes that wait together are one transaction and one flush. A change has been
//! answered when it lasts.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::mem;
use core::task::{Poll, Waker};

use ekv::config::{MAX_KEY_SIZE, MAX_VALUE_SIZE};
use ekv::{Config, Database, FormatError, ReadError, WriteError};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use wharf::block::BlockDevice;
use wharf::task;

use crate::flash::DiskFlash;

type Db = Database<DiskFlash, NoopRawMutex>;
type Key = String;
type Value = Vec<u8>;

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no such key.
    NotFound,
    /// Key or value are too long.
    TooLong,
    /// The disk is full.
    Full,
    /// The disk failed, or is no database any more.
    Disk,
}

enum Job {
    Get(Key),
    Change(Key, Option<Value>),
    List,
}

type Answer = Result<Value, Failure>;

/// A place for an answer, and who waits for it.
type Ticket = Rc<RefCell<(Option<Answer>, Option<Waker>)>>;

/// The database. Clones are the same one.
#[derive(Clone, Default)]
pub struct Store(Rc<RefCell<Jobs>>);

/// Jobs that nobody has begun, and the task that does them.
type Jobs = (VecDeque<(Job, Ticket)>, Option<Waker>);

impl Store {
    /// Opens the database on a disk, or makes it on one that has none.
    pub async fn open(disk: BlockDevice) -> Result<Self, Failure> {
        let mut random = [0; 4];
        wharf::random::fill(&mut random);
        let mut config = Config::default();
        config.random_seed = u32::from_ne_bytes(random);
        let db = Db::new(DiskFlash::new(disk), config);
        if !(db.lock_flash().await.is_marked().await).map_err(|_| Failure::Disk)? {
            db.format()
                .await
                .map_err(|FormatError::Flash(_)| Failure::Disk)?;
            (db.lock_flash().await.mark().await).map_err(|_| Failure::Disk)?;
        }
        db.mount().await.map_err(|_| Failure::Disk)?;
        let store = Self::default();
        let served = store.clone();
        task::spawn(async move { served.serve(&db).await });
        Ok(store)
    }

    pub async fn get(&self, key: Key) -> Answer {
        self.ask(Job::Get(key)).await
    }

    pub async fn put(&self, key: Key, value: Value) -> Answer {
        self.ask(Job::Change(key, Some(value))).await
    }

    pub async fn delete(&self, key: Key) -> Answer {
        self.ask(Job::Change(key, None)).await
    }

    /// Returns all keys, each with a line end.
    pub async fn list(&self) -> Answer {
        self.ask(Job::List).await
    }

    async fn ask(&self, job: Job) -> Answer {
        let ticket = Ticket::default();
        let waker = {
            let (queue, waker) = &mut *self.0.borrow_mut();
            queue.push_back((job, ticket.clone()));
            waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
        poll_fn(|context| {
            let (answer, waker) = &mut *ticket.borrow_mut();
            *waker = Some(context.waker().clone());
            answer.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn serve(&self, db: &Db) {
        loop {
            let jobs = poll_fn(|context| {
                let (queue, waker) = &mut *self.0.borrow_mut();
                *waker = Some(context.waker().clone());
                match mem::take(queue) {
                    jobs if jobs.is_empty() => Poll::Pending,
                    jobs => Poll::Ready(jobs),
                }
            })
            .await;
            // Whoever comes later sees what came before.
            let mut changes = BTreeMap::new();
            let mut waiting = Vec::new();
            for (job, ticket) in jobs {
                if let Job::Change(key, value) = job {
                    let value_len = value.as_ref().map_or(0, Vec::len);
                    if key.len() > MAX_KEY_SIZE || value_len > MAX_VALUE_SIZE {
                        give(&ticket, Err(Failure::TooLong));
                        continue;
                    }
                    changes.insert(key, value);
                    waiting.push(ticket);
                    continue;
                }
                commit(db, &mut changes, &mut waiting).await;
                give(
                    &ticket,
                    match job {
                        Job::Get(key) => get(db, &key).await,
                        Job::List | Job::Change(..) => list(db).await,
                    },
                );
            }
            commit(db, &mut changes, &mut waiting).await;
        }
    }
}

fn give(ticket: &Ticket, answer: Answer) {
    let mut ticket = ticket.borrow_mut();
    ticket.0 = Some(answer);
    ticket.1.take().into_iter().for_each(Waker::wake);
}

/// Makes changes last, and then says so to those who wait for them.
async fn commit(db: &Db, changes: &mut BTreeMap<Key, Option<Value>>, waiting: &mut Vec<Ticket>) {
    if waiting.is_empty() {
        return;
    }
    let done = change(db, mem::take(changes)).await;
    for ticket in waiting.drain(..) {
        give(&ticket, done.map(|()| Vec::new()));
    }
}

async fn change(db: &Db, changes: BTreeMap<Key, Option<Value>>) -> Result<(), Failure> {
    let mut transaction = db.write_transaction().await;
    for (key, value) in changes {
        let written = match value {
            Some(value) => transaction.write(key.as_bytes(), &value).await,
            None => transaction.delete(key.as_bytes()).await,
        };
        written.map_err(|error| match error {
            WriteError::Full => Failure::Full,
            WriteError::KeyTooBig | WriteError::ValueTooBig => Failure::TooLong,
            _ => Failure::Disk,
        })?;
    }
    transaction.commit().await.map_err(|_| Failure::Disk)?;
    let mut flash = db.lock_flash().await;
    flash.flush().await.map_err(|_| Failure::Disk)
}

async fn get(db: &Db, key: &str) -> Answer {
    let mut value = vec![0; MAX_VALUE_SIZE];
    let read = db
        .read_transaction()
        .await
        .read(key.as_bytes(), &mut value)
        .await;
    let len = read.map_err(|error| match error {
        ReadError::KeyNotFound => Failure::NotFound,
        ReadError::KeyTooBig => Failure::TooLong,
        _ => Failure::Disk,
    })?;
    value.truncate(len);
    Ok(value)
}

async fn list(db: &Db) -> Answer {
    let transaction = db.read_transaction().await;
    let mut cursor = transaction.read_all().await.map_err(|_| Failure::Disk)?;
    let (mut key, mut value) = ([0; MAX_KEY_SIZE], vec![0; MAX_VALUE_SIZE]);
    let mut keys = Vec::new();
    while let Some((len, _)) =
        (cursor.next(&mut key, &mut value).await).map_err(|_| Failure::Disk)?
    {
        keys.extend_from_slice(&key[..len]);
        keys.push(b'\n');
    }
    Ok(keys)
}
