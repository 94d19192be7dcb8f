//! A cell for tests: its supervisor is a list of replicas, its guests are the test.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;

use crate::cell::console::ConsoleRing;
use crate::cell::events::EventLog;
use crate::cell::protocol::{EventKind, Selector, TaskState, TaskStatus};
use crate::cell::{Cell, NoSuchTask, Request};

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
        restarts: 0,
        exit_status: None,
        weight: 100,
        worker: Some(0),
        reason: None,
    }
}

/// A cell of `web.0`, `web.1` and `db.0`, and their consoles in this order.
/// Stopping and restarting is done at once; after `down` there is nothing.
pub(crate) fn cell() -> (Cell, Vec<Arc<ConsoleRing>>) {
    let mut tasks = vec![status("web", 0), status("web", 1), status("db", 0)];
    let rings: Vec<_> = tasks.iter().map(|_| Arc::default()).collect();
    let (requests, inbox) = bounded(64);
    let events = Arc::new(EventLog::default());
    let (log, consoles) = (Arc::clone(&events), rings.clone());
    thread::spawn(move || {
        for request in inbox {
            match request {
                Request::Tasks(reply) => {
                    let _ = reply.send(tasks.clone());
                }
                Request::Stop(selector, reply) => {
                    let chosen = chosen(&mut tasks, &selector);
                    let stop = |task: &mut TaskStatus| task.state = TaskState::Stopped;
                    let _ = reply.send(chosen.map(|chosen| chosen.into_iter().for_each(stop)));
                }
                Request::Restart(selector, reply) => {
                    let chosen = chosen(&mut tasks, &selector);
                    let restart = |task: &mut TaskStatus| task.generation += 1;
                    let _ = reply.send(chosen.map(|chosen| chosen.into_iter().for_each(restart)));
                }
                Request::Consoles(selector, reply) => {
                    let all = tasks.iter().zip(&consoles);
                    let wanted = all.filter(|(task, _)| selector.matches(&task.name, task.index));
                    let named: Vec<_> = wanted
                        .map(|(task, ring)| {
                            (format!("{}.{}", task.name, task.index), Arc::clone(ring))
                        })
                        .collect();
                    let _ = reply.send(match named.is_empty() {
                        true => Err(NoSuchTask { selector }),
                        false => Ok(named),
                    });
                }
                Request::Down => {
                    log.add(None, 0, EventKind::Down, String::new());
                    break;
                }
            }
        }
    });
    (Cell::with_supervisor(requests, events), rings)
}

fn chosen<'a>(
    tasks: &'a mut [TaskStatus],
    selector: &Selector,
) -> Result<Vec<&'a mut TaskStatus>, NoSuchTask> {
    let chosen: Vec<_> = tasks
        .iter_mut()
        .filter(|task| selector.matches(&task.name, task.index))
        .collect();
    match chosen.is_empty() {
        true => Err(NoSuchTask {
            selector: selector.clone(),
        }),
        false => Ok(chosen),
    }
}
