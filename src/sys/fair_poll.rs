//! Shares the runtime's workers fairly among classes of tasks.
//!
//! The runtime polls tasks in the order in which they were woken. A line wakes all followers of its replica,
//! so a tenant with a thousand followers would delay each task of another tenant by a thousand polls. Tasks
//! of a class therefore take turns: only a few of them are in the runtime's queue at once, and the others
//! wait in a queue of their class. A task of another class waits for up to four polls per turn of each busy
//! class: the end of a turn wakes the next task, and the runtime polls up to three such tasks in a row.
//!
//! A task gets a waker that puts it into the queue of its class. Its turn ends with its poll.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::sys::sync::Mutex;

#[cfg(test)]
#[cfg(feature = "loom")]
mod models;

/// A class of tasks. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct TaskClass(Arc<ClassState>);

/// A class that exists as long as something else holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct WeakTaskClass(Weak<ClassState>);

#[derive(Debug)]
struct ClassState {
    /// Most tasks with a turn at once.
    turns_max: usize,
    queue: Mutex<ClassQueue>,
}

#[derive(Debug, Default)]
struct ClassQueue {
    /// Tasks that have a turn: the runtime has them in its queue, or polls them.
    turns: usize,
    waiting: VecDeque<Arc<TaskState>>,
}

/// The class of several tasks, which may change. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct SharedClass(Arc<Mutex<TaskClass>>);

pin_project! {
    /// A task that takes turns with the others of its class.
    pub(crate) struct Fair<F> {
        #[pin]
        future: F,
        waker: Waker,
        task: TaskHandle,
    }
}

/// Ends the turn of a task that is dropped.
struct TaskHandle(Arc<TaskState>);

/// A turn of a task that is polled. Ends on drop, so that a panic does not keep it.
struct Turn(TaskClass);

#[derive(Debug)]
struct TaskState {
    class: SharedClass,
    /// Never locked while a class is.
    phase: Mutex<Phase>,
}

#[derive(Debug)]
enum Phase {
    /// Not polled yet: it has no waker of the runtime.
    New,
    /// Waits to be woken; becomes `Queued`.
    Idle(Waker),
    /// Waits for its turn, which makes it `Woken`.
    Queued(Waker),
    /// The runtime was asked to poll it, which makes it `Polling`.
    Woken(TaskClass),
    /// Becomes `Idle`, or `Queued` if it was woken meanwhile (`true`).
    Polling(bool),
    Dropped,
}

// === impl TaskClass ===

impl TaskClass {
    /// Creates a class of which `turns_per_worker` tasks are in the queue of each worker of the present
    /// runtime.
    pub(crate) fn new(turns_per_worker: usize) -> Self {
        let workers = Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers());
        Self(Arc::new(ClassState { turns_max: turns_per_worker * workers, queue: Mutex::default() }))
    }

    pub(crate) fn downgrade(&self) -> WeakTaskClass {
        WeakTaskClass(Arc::downgrade(&self.0))
    }

    /// Gives `task` a turn, now or later.
    fn enqueue(&self, task: &Arc<TaskState>) {
        let mut queue = self.0.queue.lock();
        if queue.turns == self.0.turns_max {
            queue.waiting.push_back(Arc::clone(task));
            return;
        }
        queue.turns += 1;
        drop(queue);
        if !task.begin_turn(self) {
            self.end_turn();
        }
    }

    /// Ends a turn. The next task gets it.
    fn end_turn(&self) {
        loop {
            let mut queue = self.0.queue.lock();
            let Some(next) = queue.waiting.pop_front() else {
                queue.turns -= 1;
                if queue.turns == 0 {
                    // Frees the memory of a burst.
                    queue.waiting = VecDeque::new();
                }
                return;
            };
            drop(queue);
            if next.begin_turn(self) {
                return;
            }
        }
    }
}

// === impl WeakTaskClass ===

impl WeakTaskClass {
    pub(crate) fn upgrade(&self) -> Option<TaskClass> {
        self.0.upgrade().map(TaskClass)
    }
}

// === impl SharedClass ===

impl SharedClass {
    pub(crate) fn new(class: TaskClass) -> Self {
        Self(Arc::new(Mutex::new(class)))
    }

    /// Changes the class, from the next turn of each task on.
    pub(crate) fn set(&self, class: TaskClass) {
        *self.0.lock() = class;
    }

    fn get(&self) -> TaskClass {
        self.0.lock().clone()
    }
}

// === impl Fair ===

impl<F> Fair<F> {
    pub(crate) fn new(future: F, class: SharedClass) -> Self {
        let task = Arc::new(TaskState { class, phase: Mutex::new(Phase::New) });
        Self { future, waker: Waker::from(Arc::clone(&task)), task: TaskHandle(task) }
    }
}

impl<F: Future> Future for Fair<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let task = &this.task.0;
        let turn = {
            let mut phase = task.phase.lock();
            match std::mem::replace(&mut *phase, Phase::Polling(false)) {
                // A new task waits for its turn as well.
                Phase::New => {
                    *phase = Phase::Queued(cx.waker().clone());
                    drop(phase);
                    task.class.get().enqueue(task);
                    return Poll::Pending;
                }
                Phase::Woken(class) => Some(Turn(class)),
                // The executor polls without being asked to. In `Queued`, the turn that comes is not used.
                _ => None,
            }
        };
        let polled = this.future.poll(&mut Context::from_waker(this.waker));
        drop(turn);
        let mut phase = task.phase.lock();
        let is_woken = matches!(*phase, Phase::Polling(true));
        let waker = cx.waker().clone();
        *phase = if is_woken { Phase::Queued(waker) } else { Phase::Idle(waker) };
        drop(phase);
        if is_woken && polled.is_pending() {
            task.class.get().enqueue(task);
        }
        polled
    }
}

// === impl TaskState ===

impl TaskState {
    /// Lets the runtime poll the task, which then has a turn of `class`. Returns `false` if it does not need
    /// the turn.
    fn begin_turn(&self, class: &TaskClass) -> bool {
        let mut phase = self.phase.lock();
        let Phase::Queued(waker) = &*phase else { return false };
        let waker = waker.clone();
        *phase = Phase::Woken(class.clone());
        drop(phase);
        waker.wake();
        true
    }
}

impl Wake for TaskState {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Idle(waker) => *phase = Phase::Queued(waker.clone()),
            Phase::Polling(is_woken) => {
                *is_woken = true;
                return;
            }
            Phase::New | Phase::Queued(_) | Phase::Woken(..) | Phase::Dropped => return,
        }
        drop(phase);
        self.class.get().enqueue(self);
    }
}

// === impl Turn ===

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.end_turn();
    }
}

// === impl TaskHandle ===

impl Drop for TaskHandle {
    fn drop(&mut self) {
        let phase = std::mem::replace(&mut *self.0.phase.lock(), Phase::Dropped);
        if let Phase::Woken(class) = phase {
            class.end_turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Notify, mpsc};
    use tokio_util::task::TaskTracker;

    use super::*;

    const TURNS: usize = 4;

    /// The runtime polls a task, and up to three that were woken by the poll before.
    const POLLS_PER_TURN: usize = 4;

    const TASKS: usize = 1_000;

    /// Runs tasks of one class that are always ready. Counts their polls.
    fn spawn_busy(
        tasks: &TaskTracker,
        class: &SharedClass,
        polls: &Arc<AtomicUsize>,
        done: &Arc<AtomicUsize>,
    ) {
        for _ in 0..TASKS {
            let (polls, done) = (Arc::clone(polls), Arc::clone(done));
            let busy = poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                if done.load(Ordering::Relaxed) > 0 { Poll::Ready(()) } else { Poll::Pending }
            });
            tasks.spawn(Fair::new(busy, class.clone()));
        }
    }

    /// With one worker, so that polls can be counted.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn busy_class_delays_task_of_another_by_few_polls() {
        let (tasks, polls, done) = (TaskTracker::new(), Arc::default(), Arc::default());
        let (busy, other) = (TaskClass::new(TURNS), TaskClass::new(TURNS));
        spawn_busy(&tasks, &SharedClass::new(busy), &polls, &done);
        let wake = [(); 2].map(|()| Arc::new(Notify::new()));
        let [waits, next] = wake.clone();
        let (answers, mut answered) = mpsc::channel(1);
        let polled = Arc::clone(&polls);
        let other_task = async move {
            loop {
                waits.notified().await;
                answers.try_send(polled.load(Ordering::Relaxed)).unwrap();
            }
        };
        let next_task = async move {
            loop {
                next.notified().await;
            }
        };
        let waiting = [tasks.spawn(Fair::new(other_task, SharedClass::new(other))), tasks.spawn(next_task)];
        let asking = tasks.spawn(async move {
            for _ in 0..1_000 {
                let before = polls.load(Ordering::Relaxed);
                // The runtime polls the task that is woken last first.
                for task in &wake {
                    task.notify_one();
                }
                let delay = answered.recv().await.unwrap() - before;
                assert!(delay <= POLLS_PER_TURN * TURNS, "{delay}");
            }
            done.store(1, Ordering::Relaxed);
        });
        asking.await.unwrap();
        for task in &waiting {
            task.abort();
        }
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn tasks_of_a_class_get_equal_turns() {
        let class = SharedClass::new(TaskClass::new(TURNS));
        let (tasks, counts) = (TaskTracker::new(), Arc::new([const { AtomicUsize::new(0) }; 100]));
        for index in 0..counts.len() {
            let counts = Arc::clone(&counts);
            let busy = poll_fn(move |cx| {
                cx.waker().wake_by_ref();
                let count = counts[index].fetch_add(1, Ordering::Relaxed);
                if count == 50 { Poll::Ready(()) } else { Poll::Pending }
            });
            tasks.spawn(Fair::new(busy, class.clone()));
        }
        while counts[0].load(Ordering::Relaxed) < 25 {
            tokio::task::yield_now().await;
        }
        let all = counts.iter().map(|count| count.load(Ordering::Relaxed));
        assert!(all.into_iter().all(|count| (24..=27).contains(&count)), "{counts:?}");
        tasks.close();
        tasks.wait().await;
        let class = class.get();
        let queue = class.0.queue.lock();
        assert_eq!((queue.turns, queue.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn dropped_tasks_return_their_turns() {
        let class = SharedClass::new(TaskClass::new(TURNS));
        let (tasks, polls, done) = (TaskTracker::new(), Arc::default(), Arc::default());
        let mut aborted = Vec::new();
        for _ in 0..20 {
            aborted.push(tasks.spawn(Fair::new(pending::<()>(), class.clone())));
        }
        spawn_busy(&tasks, &class, &polls, &done);
        tokio::task::yield_now().await;
        for task in aborted {
            task.abort();
        }
        done.store(1, Ordering::Relaxed);
        tasks.close();
        tasks.wait().await;
        assert_eq!(class.get().0.queue.lock().turns, 0);
    }

    #[test]
    fn turn_passes_over_dropped_tasks() {
        let class = TaskClass::new(1);
        let mut tasks: Vec<_> =
            (0..3).map(|_| Fair::new(pending::<()>(), SharedClass::new(class.clone()))).collect();
        let mut cx = Context::from_waker(Waker::noop());
        // The first one gets the turn, and the others wait for it.
        for task in &mut tasks {
            assert!(Pin::new(task).poll(&mut cx).is_pending());
        }
        tasks.remove(1);
        for task in &mut tasks {
            assert!(Pin::new(task).poll(&mut cx).is_pending());
        }
        let queue = class.0.queue.lock();
        assert_eq!((queue.turns, queue.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn task_that_changes_its_class_returns_its_turn() {
        let [first, second] = [(); 2].map(|()| TaskClass::new(1));
        let class = SharedClass::new(first.clone());
        let tasks = TaskTracker::new();
        let (to, changed) = (second.clone(), class.clone());
        let changing = async move {
            changed.set(to);
            tokio::task::yield_now().await;
        };
        tasks.spawn(Fair::new(changing, class)).await.unwrap();
        for class in [first, second] {
            assert_eq!(class.0.queue.lock().turns, 0);
        }
    }

    #[tokio::test]
    async fn panicking_tasks_return_their_turns() {
        let class = SharedClass::new(TaskClass::new(TURNS));
        let tasks = TaskTracker::new();
        for _ in 0..2 * TURNS {
            let panicking = tasks.spawn(Fair::new(async { panic!("expected") }, class.clone()));
            assert!(panicking.await.unwrap_err().is_panic());
        }
        assert_eq!(class.get().0.queue.lock().turns, 0);
    }
}
