//! A cell for tests: its supervisor is a list of replicas, its guests are the test.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;

use crate::cell::console::{ConsoleRing, Consoles};
use crate::cell::events::EventLog;
use crate::cell::protocol::{
    Command, EventKind, NoSuchTask, Reply, Selector, TaskState, TaskStatus,
};
use crate::cell::{Cell, Request};

/// A replica that waits, having done nothing.
pub(crate) fn status(name: &str, index: u32) -> TaskStatus {
    TaskStatus {
        name: name.to_owned(),
        index,
        generation: 1,
        state: TaskState::Waiting,
        image: "hello.elf".to_owned(),
        memory_bytes: 32 << 20,
        run_ns: 0,
        exits: 0,
        console_bytes: 0,
        connections: 0,
        connections_total: 0,
        connection_errors: 0,
        received_bytes: 0,
        sent_bytes: 0,
        received_frames_dropped: 0,
        sent_frames_dropped: 0,
        restarts: 0,
        exit_status: None,
        weight: 100,
        share: 100,
        beside: None,
        worker: Some(0),
        reason: None,
    }
}

/// A cell of `web.0`, `web.1` and `db.0`, and their consoles in this order.
pub(crate) fn cell() -> (Cell, Vec<Arc<ConsoleRing>>) {
    cell_of(vec![status("web", 0), status("web", 1), status("db", 0)])
}

/// A cell of these, and their consoles. Stopping and restarting is done at once;
/// after `down` there are no tasks.
pub(crate) fn cell_of(mut tasks: Vec<TaskStatus>) -> (Cell, Vec<Arc<ConsoleRing>>) {
    let rings: Vec<Arc<ConsoleRing>> = tasks.iter().map(|_| Arc::default()).collect();
    let written = tasks.iter().zip(&rings);
    let consoles = Consoles::new(
        written.map(|(task, ring)| (task.name.clone(), task.index, Arc::clone(ring))),
    );
    let (requests, inbox) = bounded(64);
    let events = Arc::new(EventLog::default());
    let log = Arc::clone(&events);
    thread::spawn(move || {
        for Request { command, reply, .. } in inbox {
            let is_down = command == Command::Down;
            let answer = match command {
                Command::Tasks => Reply::Tasks(tasks.clone()),
                Command::Stop(selector) => {
                    each(&mut tasks, selector, |task| task.state = TaskState::Stopped)
                }
                Command::Restart(selector) => each(&mut tasks, selector, |task| {
                    task.generation += 1;
                }),
                Command::Upgrade { selector, .. } | Command::Rollback(selector) => {
                    let denied = format!("{selector} cannot be upgraded in a test");
                    Reply::Denied(denied)
                }
                Command::Snapshot { selector, file } => {
                    let file = file.display();
                    Reply::Denied(format!("{selector} is not written to {file} in a test"))
                }
                Command::HandOver { program } => {
                    let program = program.display();
                    Reply::Denied(format!("{program} is not started in a test"))
                }
                Command::Upgrades => Reply::Upgrades(Vec::new()),
                Command::Down => {
                    log.add(None, 0, EventKind::Down, String::new());
                    Reply::Begun
                }
            };
            let _ = reply.send(answer);
            if is_down {
                break;
            }
        }
    });
    (Cell::with_supervisor(requests, events, consoles), rings)
}

fn each(tasks: &mut [TaskStatus], selector: Selector, change: fn(&mut TaskStatus)) -> Reply {
    let all = tasks.iter_mut();
    let mut chosen: Vec<_> = all.filter(|task| selector.means(task)).collect();
    if chosen.is_empty() {
        return Reply::Refused(NoSuchTask { selector });
    }
    for task in &mut chosen {
        change(task);
    }
    Reply::Begun
}
