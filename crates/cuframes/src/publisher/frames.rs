// SPDX-License-Identifier: LGPL-2.1-or-later
//! Loans and publication of frames: a slot is on loan while it is written, then published, and reused when no
//! subscriber needs the frame.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::backpressure::{Backpressure, BackpressureWait, Policy, WaitContext};
use super::handle::SubscriberHandle;
use super::pool::{LOAN_STEP, MAX_LOANS, Pool, SlotSearch, Slots, Suspect, over_credit};
use super::registry::Registry;
use crate::error::{Context, Result};
use crate::memory::{Backend, Chunk, Kind};
use crate::shm::claim;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC, MAX_SLOTS, pack_index};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::record::Record;
use crate::shm::segments::Control;
use crate::shm::stream_end;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{clock, lock};
use crate::types::frame::FrameInfo;
use crate::types::refusal::RefusalReason;

/// Statistics of a publisher's frame pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Kind of memory that new frames are in.
    pub memory: Kind,
    /// Number of frames that were published, which is the sequence number of the newest.
    pub published: u64,
    /// Number of frames that were dropped because no slot was free ([`Publisher::count_dropped`]).
    ///
    /// [`Publisher::count_dropped`]: super::Publisher::count_dropped
    pub dropped: u64,
    /// Number of slots.
    pub slots: u32,
    /// Number of chunks. A chunk is one allocation with several slots.
    pub chunks: u32,
    /// Size of all chunks in bytes.
    pub bytes: u64,
}

/// Maximum number of searches for a free slot, before the claims are compared with the credits.
const MAX_SEARCHES: u32 = 64;
/// Number of such comparisons after which a subscriber that seems to exceed its credit is evicted.
const MAX_ROUNDS: u32 = 16;

/// What happens to the loan when its slot is published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LoanAfter {
    /// The slot returns to the pool, and is free as soon as the frame is no longer needed.
    Returned,
    /// The slot stays on loan until the loan is dropped.
    Kept,
}

/// Publishes frames: owns the control segment and the pool.
pub(crate) struct FramePublisher {
    pub(super) slots: Slots,
    pub(super) control_fd: OwnedFd,
    pub(super) index_len: u32,
    pub(super) backpressure: Backpressure,
    pool: Mutex<Pool>,
}

/// The numbers that a [`FramePublisher`] is created with.
pub(super) struct FramePublisherConfig {
    /// Number of newest frames that are kept for subscribers that are just waking up.
    pub(super) window: u32,
    pub(super) policy: Policy,
    /// Maximum sum of all credits.
    pub(super) credits: u32,
    pub(super) epoch: u64,
}

impl FramePublisher {
    /// Creates the control segment and an empty pool.
    ///
    /// # Errors
    /// The system has no memory or file descriptors left.
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        registry: Arc<Registry>,
        config: FramePublisherConfig,
    ) -> Result<Self> {
        let FramePublisherConfig { window, policy, credits, epoch } = config;
        // Twice the maximum in use; see the head of `pool`.
        let capacity = credits.saturating_add(window + MAX_LOANS).saturating_mul(2);
        let slots = capacity.min(MAX_SLOTS);
        let index_len = slots.next_power_of_two();
        let size = Control::size(slots, index_len);
        let (map, control_fd) = Mapping::create("cuframes-control", size, Sharing::ReadOnly)
            .context("create the control segment")?;
        let control = Control::new(map, slots, index_len);
        let h = control.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.slots.store(slots, Ordering::Relaxed);
        h.index.store(index_len, Ordering::Relaxed);
        h.epoch.store(epoch, Ordering::Relaxed);
        // SYNC(magic/open): pairs with the Acquire of the subscriber that opens the segment.
        h.magic.store(MAGIC, Ordering::Release);
        Ok(Self {
            slots: Slots { control, registry, window, policy },
            control_fd,
            index_len,
            backpressure: Backpressure::new(policy),
            pool: Mutex::new(Pool::new(slots, backend)),
        })
    }

    /// Sets the caps of all later frames and the bytes that each needs, and the backend that allocates slots if
    /// `backend` is given.
    ///
    /// FORMAT is announced before the first frame of the new generation is published, so the new caps take effect at
    /// exactly that frame.
    ///
    /// # Errors
    /// There is no slot, and no memory or slot number for one.
    pub(super) fn set_format(
        &self,
        caps: &str,
        slot_size: usize,
        backend: Option<Arc<dyn Backend>>,
    ) -> Result<()> {
        let mut pool = lock(&self.pool);
        let switched = backend.is_some_and(|backend| pool.switch_backend(&backend));
        pool.subscribers.refresh(&self.slots.registry);
        pool.generation += 1;
        let live = pool.live_generations();
        self.slots.registry.announce_format(pool.generation, caps, &live);
        let other_size = slot_size > pool.slot_size || slot_size < pool.slot_size / 2;
        if switched || other_size {
            pool.retire_all(slot_size);
        }
        drop(pool);
        self.slots.registry.wake_server();
        // A subscriber that blocks the allocation is waited for in `loan`.
        self.ensure_any_capacity()?;
        Ok(())
    }

    /// Allocates slots for `credit` more frames and then adds a subscriber while no frame is published: `add` runs
    /// under the pool's lock, and receives the sequence number of the newest frame. `add` must not call
    /// back into this publisher.
    ///
    /// A frame that is published later finds the subscriber in the pool's list, so it wakes the
    /// subscriber and keeps its credit.
    ///
    /// # Errors
    /// There is no memory or slot number for the additional slots.
    pub(super) fn register_between_frames(&self, credit: u32, add: impl FnOnce(u64)) -> Result<()> {
        loop {
            self.grow(credit)?;
            let mut pool = lock(&self.pool);
            // Slots may have been retired meanwhile.
            if pool.growth(self.slots.window, credit)?.is_none() {
                add(pool.head);
                pool.subscribers.refresh(&self.slots.registry);
                return Ok(());
            }
        }
    }

    /// Allocates slots until there are enough for the window, all credits and upstream, plus `more_credit`.
    ///
    /// # Errors
    /// There is no memory or slot number left. For `more_credit` nothing is allocated then, otherwise as much as
    /// possible.
    fn grow(&self, more_credit: u32) -> Result<()> {
        match self.grow_once(more_credit) {
            // The memory and the numbers of retiring chunks may be enough.
            Err(_) => {
                self.free_retired();
                self.grow_once(more_credit)
            }
            Ok(()) => Ok(()),
        }
    }

    fn grow_once(&self, more_credit: u32) -> Result<()> {
        loop {
            let mut pool = lock(&self.pool);
            pool.subscribers.refresh(&self.slots.registry);
            let growth = pool.growth(self.slots.window, more_credit)?;
            drop(pool);
            let Some(growth) = growth else { return Ok(()) };
            let mut chunks = Vec::new();
            let result = growth.allocate(&mut chunks);
            let allocated = chunks.len();
            if result.is_ok() || more_credit == 0 {
                self.slots.install(&mut lock(&self.pool), &growth, &mut chunks);
            }
            if chunks.len() < allocated {
                self.slots.registry.wake_server();
            }
            result?;
        }
    }

    /// Allocates the missing slots, or accepts fewer when at least one slot exists. When there is none, returns
    /// the strict subscriber that has to take a frame first, under a policy that waits.
    ///
    /// # Errors
    /// There is no slot, and no memory or slot number for one.
    fn ensure_any_capacity(&self) -> Result<Option<Arc<SubscriberHandle>>> {
        let Err(e) = self.grow(0) else { return Ok(None) };
        let mut pool = lock(&self.pool);
        if pool.capacity() > 0 {
            if !std::mem::replace(&mut pool.growth_failed, true) {
                tracing::warn!(%e, "the frame pool is too small for its subscribers");
                self.slots.registry.wake_server();
            }
            return Ok(None);
        }
        let blocking = self.slots.blocking_subscriber(&pool);
        drop(pool);
        if blocking.is_none() {
            // The blocking subscriber may have taken its frame a moment ago.
            self.grow(0)?;
        }
        Ok(blocking)
    }

    /// Frees the memory of retiring chunks that are no longer in use.
    fn free_retired(&self) {
        let mut from = 0;
        loop {
            let freed = self.slots.free_retired_chunk(&mut lock(&self.pool), from);
            let Some((id, chunk)) = freed else { return };
            if chunk.is_some() {
                // The registry's references to the memory are dropped here, without a lock.
                drop(self.slots.registry.announce_retired(id));
            }
            from = id + 1;
        }
    }

    /// Frees memory that is no longer needed, and retries allocations that failed. The server thread
    /// calls this function. Returns whether it has to be called again later.
    pub(super) fn maintain(&self, now: Duration) -> bool {
        let growth_failed = {
            let mut pool = lock(&self.pool);
            pool.subscribers.refresh(&self.slots.registry);
            pool.retire_surplus(self.slots.window, now);
            pool.growth_failed
        };
        self.free_retired();
        self.evict_who_keeps_retired();
        if growth_failed && self.grow(0).is_ok() {
            lock(&self.pool).growth_failed = false;
        }
        lock(&self.pool).needs_maintenance()
    }

    /// Evicts a subscriber that claims more slots than its credit while slots of retired chunks are in use. Such a
    /// subscriber could keep any amount of memory without a frame ever lacking a slot.
    fn evict_who_keeps_retired(&self) {
        let pool = lock(&self.pool);
        let subscribers = pool.has_retiring().then(|| pool.subscribers.list());
        drop(pool);
        let slots = self.slots.control.slots();
        if let Some(suspect) = over_credit(&subscribers.unwrap_or_default(), slots)
            && suspect.certain
        {
            self.evict_over_credit(&suspect);
        }
    }

    /// Drops references to subscribers that were removed.
    pub(super) fn refresh_subscribers(&self) {
        lock(&self.pool).subscribers.refresh(&self.slots.registry);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let pool = lock(&self.pool);
        PoolStats {
            memory: pool.backend.kind(),
            published: pool.head,
            dropped: pool.dropped,
            slots: pool.slot_count(),
            chunks: pool.chunks.len() as u32,
            bytes: pool
                .chunks
                .iter()
                .map(|c| c.memory.geometry().bytes().unwrap_or(0) as u64)
                .sum(),
        }
    }

    /// Returns a slot for a frame of `size` bytes, in memory of `backend` where that is given. Returns `None` if
    /// all slots are in use, or if the publisher would have to wait and `cancelled` returns true.
    ///
    /// # Errors
    /// There is no slot, and no memory or slot number for one.
    pub(super) fn loan(
        self: &Arc<Self>,
        size: usize,
        backend: Option<&Arc<dyn Backend>>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>> {
        let mut wait = BackpressureWait::new(self.wait_context(), cancelled);
        let (mut searches, mut rounds) = (0, 0);
        loop {
            let mut pool = lock(&self.pool);
            pool.subscribers.refresh(&self.slots.registry);
            if backend.is_some_and(|b| pool.switch_backend(b)) || size > pool.slot_size {
                pool.retire_all(size);
                self.slots.registry.wake_server();
            }
            // A subscriber that joined before the first format has no slots for its credit yet.
            if pool.lacks_slots(self.slots.window) {
                drop(pool);
                if let Some(subscriber) = self.ensure_any_capacity()?
                    && !wait.wait_for(subscriber, "a frame")
                {
                    return Ok(None);
                }
                continue;
            }
            // A loan beyond the reserve gets an additional slot if there is memory, instead of one that
            // subscribers are entitled to.
            let may_grow = pool.loans >= pool.loan_reserve.max(1)
                && pool.loans < MAX_LOANS
                && !pool.growth_failed;
            let overwrites = self.slots.policy == Policy::Drop && !may_grow;
            let search = self.slots.acquire_slot(&mut pool, overwrites);
            match search {
                SlotSearch::Found(slot) => {
                    let loan = self.make_loan(&mut pool, slot);
                    drop(pool);
                    // If that fails, dropping the loan returns the slot.
                    loan.memory.prepare(loan.index).context("get memory for frames")?;
                    return Ok(Some(loan));
                }
                _ if may_grow => self.grow_for_loans(pool),
                SlotSearch::Blocked(subscriber) => {
                    drop(pool);
                    if !wait.wait_for(subscriber, "a frame") {
                        return Ok(None);
                    }
                }
                SlotSearch::Exhausted if searches < MAX_SEARCHES => {
                    searches += 1;
                    std::hint::spin_loop();
                }
                SlotSearch::Exhausted => {
                    let subscribers = pool.subscribers.list();
                    let entitled = pool.has_slot_for_loan(self.slots.window);
                    drop(pool);
                    (searches, rounds) = (0, rounds + 1);
                    match over_credit(&subscribers, self.slots.control.slots()) {
                        // Its slots are free now.
                        Some(suspect) if suspect.certain || rounds > MAX_ROUNDS => {
                            rounds = 0;
                            self.evict_over_credit(&suspect);
                        }
                        // It may just be moving from frame to frame. It comes to rest, because no frame is published.
                        Some(_) => {}
                        // A subscriber exceeded its credit during the searches, and not when the claims were counted.
                        None if entitled && rounds <= MAX_ROUNDS => {}
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// Allocates slots for loans beyond the reserve.
    fn grow_for_loans(&self, mut pool: MutexGuard<'_, Pool>) {
        let before = pool.loan_reserve;
        pool.loan_reserve = (pool.loans + LOAN_STEP).min(MAX_LOANS);
        drop(pool);
        if let Err(e) = self.grow(0) {
            tracing::debug!(%e, "the frame pool can't grow");
            let mut pool = lock(&self.pool);
            pool.loan_reserve = before;
            // Until the server thread has found memory.
            pool.growth_failed = true;
            self.slots.registry.wake_server();
        }
    }

    /// Evicts a subscriber that holds more slots than its credit.
    fn evict_over_credit(&self, suspect: &Suspect<'_>) {
        let Suspect { subscriber, held, .. } = suspect;
        subscriber.revoked.store(true, Ordering::Relaxed);
        let text = format!(
            "it holds {held} frames with a credit of {}: run the same version of cuframes on both sides",
            subscriber.credit
        );
        self.slots.registry.evict(subscriber, RefusalReason::OverCredit, text);
    }

    /// Counts a frame that was dropped because no slot was free.
    pub(super) fn count_dropped(&self) {
        let mut pool = lock(&self.pool);
        pool.dropped += 1;
        self.slots.control.header().status.dropped.store(pool.dropped, Ordering::Relaxed);
    }

    /// Returns what a [`BackpressureWait`] needs of this publisher.
    pub(super) fn wait_context(&self) -> WaitContext<'_> {
        WaitContext {
            backpressure: &self.backpressure,
            publisher_waits: &self.slots.control.header().status.publisher_waits,
            registry: &self.slots.registry,
        }
    }

    /// Marks the end of the stream after the newest frame. The next frame removes the mark.
    pub(super) fn end(&self) {
        let h = self.slots.control.header();
        stream_end::end(&h.status.eos);
        let subscribers = lock(&self.pool).subscribers.list();
        self.slots.registry.waker().wake_frame_readers(&subscribers);
    }

    fn make_loan(self: &Arc<Self>, pool: &mut Pool, number: u32) -> Loan {
        pool.loans += 1;
        pool.most_loans = pool.most_loans.max(pool.loans);
        let kind = pool.backend.kind();
        let slot = pool.slots[number as usize].as_mut().expect("a slot that was acquired exists");
        slot.loaned = true;
        slot.published = false;
        Loan {
            frames: self.clone(),
            memory: slot.memory.clone(),
            kind,
            slot: number,
            index: slot.index,
            published: AtomicBool::new(false),
            returned: false,
        }
    }

    /// Publishes the slot of a loan and returns the frame's sequence number; `None` if the slot was published
    /// before. `ready` says that the pixels are complete; otherwise the device sets the slot's ready word to the
    /// sequence number when they are.
    fn publish(&self, number: u32, info: &FrameInfo, ready: bool, after: LoanAfter) -> Option<u64> {
        let h = self.slots.control.header();
        let mut pool = lock(&self.pool);
        let (generation, seq) = (pool.generation, pool.head + 1);
        let slot = pool.slots[number as usize].as_mut().filter(|s| s.loaned && !s.published)?;
        slot.published = true;
        slot.generation = generation;
        slot.loaned = after == LoanAfter::Kept;
        let published_ns = clock::now_ns();
        let (chunk, slot_in_chunk) = (slot.chunk, slot.index);
        let record = Record { seq, generation, chunk, slot_in_chunk, published_ns, info };
        record.store(self.slots.control.record(number));
        claim::publish(self.slots.control.slot(number), seq);
        self.slots.control.index_entry(seq).store(pack_index(seq, number), Ordering::Relaxed);
        if ready {
            // SYNC(ready/complete): pairs with the Acquire in `FrameReader`. The pixels are written.
            self.slots.control.ready(number).store(seq, Ordering::Release);
        }
        // SYNC(head/publish): record, slot number and index entry are written.
        stream_end::publish(&h.status.eos, &h.head, seq);
        pool.head = seq;
        pool.reuse_queue.push_back(number);
        if after == LoanAfter::Returned {
            pool.loans -= 1;
        }
        // Every subscriber is added under the pool's lock (`register_between_frames`). One that is added after this
        // frame synchronises with the lock, so it sees this `head` before it first sleeps.
        let subscribers = pool.subscribers.list();
        drop(pool);
        self.slots.registry.waker().wake_frame_readers(&subscribers);
        tracing::trace!(name: "published", target: "cuframes::steps", published = published_ns);
        Some(seq)
    }

    fn return_loan(&self, number: u32) {
        let mut pool = lock(&self.pool);
        pool.loans -= 1;
        let slot = pool.slots[number as usize].as_mut().expect("a slot on loan exists");
        slot.loaned = false;
        if !slot.published {
            pool.reuse_queue.push_front(number);
        }
    }
}

/// A slot on loan, to write a frame into. [`Publisher::loan`] returns it.
///
/// [`Publisher::publish`] publishes it and ends the loan. [`Publisher::publish_in_place`] publishes it while the
/// owner keeps it, for example to go on reading the frame. The slot returns to the pool when the loan is dropped; a
/// slot that was not published is free again at once. A loan may outlive its publisher.
///
/// [`Publisher::loan`]: super::Publisher::loan
/// [`Publisher::publish`]: super::Publisher::publish
/// [`Publisher::publish_in_place`]: super::Publisher::publish_in_place
pub struct Loan {
    frames: Arc<FramePublisher>,
    memory: Arc<dyn Chunk>,
    kind: Kind,
    slot: u32,
    /// Index of the slot in its chunk.
    index: u32,
    /// The slot was published while this loan was kept.
    published: AtomicBool,
    /// The slot has returned to the pool.
    returned: bool,
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("slot", &self.slot).field("size", &self.len()).finish()
    }
}

impl Loan {
    /// Start of the slot: an address of the CPU or of the device, depending on the publisher's kind of memory.
    pub fn address(&self) -> u64 {
        self.memory.address(self.index)
    }

    /// The chunk that the slot is part of.
    pub fn memory(&self) -> &Arc<dyn Chunk> {
        &self.memory
    }

    /// Size of the slot in bytes, at least the size that was asked for.
    pub fn len(&self) -> usize {
        self.memory.geometry().size as usize
    }

    /// Returns whether the slot has a size of 0, which is never the case.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word to which a device writes the frame's sequence number when its pixels are complete; see
    /// [`Publisher::publish_unready`]. It is part of a segment that all subscribers map, and whose start and length
    /// are those of [`Publisher::ready_words`].
    ///
    /// Returns its offset from the start of the segment, in bytes.
    ///
    /// [`Publisher::publish_unready`]: super::Publisher::publish_unready
    /// [`Publisher::ready_words`]: super::Publisher::ready_words
    pub fn ready_offset(&self) -> usize {
        Control::ready_offset(self.slot)
    }

    /// The CUDA event that subscribers wait for, if the memory has events. It has to be recorded after the work that
    /// writes the frame, before the frame is published.
    pub fn event(&self) -> Option<&crate::cuda::Event> {
        self.memory.event(self.index)
    }

    /// The bytes of the slot, to be written.
    ///
    /// # Panics
    /// If the slot is in device memory, or was published by [`Publisher::publish_in_place`].
    ///
    /// [`Publisher::publish_in_place`]: super::Publisher::publish_in_place
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.kind, Kind::Host, "the bytes of a slot in device memory");
        // `&mut self` orders this load after a store in `publish_in_place`, which had `&self`.
        let published = self.published.load(Ordering::Relaxed);
        assert!(!published, "the bytes of a frame that was published");
        // SAFETY: the slot is `len()` bytes of a mapping that the loan keeps alive. The slot is on loan and was not
        // published, so no subscriber has a claim on it and no other loan refers to it. The borrow keeps the
        // loan from being published while the slice exists.
        unsafe { std::slice::from_raw_parts_mut(self.address() as *mut u8, self.len()) }
    }

    /// Returns whether this is a loan of the publisher with these frames.
    pub(super) fn is_of(&self, frames: &Arc<FramePublisher>) -> bool {
        Arc::ptr_eq(&self.frames, frames)
    }

    /// Publishes the slot and returns it to the pool; `None` if it was published before.
    pub(super) fn publish(mut self, info: &FrameInfo, ready: bool) -> Option<u64> {
        let seq = self.frames.publish(self.slot, info, ready, LoanAfter::Returned);
        self.returned = seq.is_some();
        seq
    }

    /// Publishes the slot and keeps it on loan; `None` if it was published before.
    pub(super) fn publish_in_place(&self, info: &FrameInfo, ready: bool) -> Option<u64> {
        let seq = self.frames.publish(self.slot, info, ready, LoanAfter::Kept);
        self.published.store(true, Ordering::Relaxed);
        seq
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.returned {
            self.frames.return_loan(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{OnceLock, Weak};

    use super::super::handle::tests::subscriber;
    use super::super::pool::SURPLUS_TIME;
    use super::super::{Publisher, PublisherConfig};
    use super::*;
    use crate::memory::host::HostBackend;
    use crate::sync::atomic::AtomicU32;
    use crate::types::mode::Mode;
    use testing::TestDir;

    const SIZE: usize = 4096;

    struct Owner {
        publisher: Publisher,
        _dir: TestDir,
    }

    impl Owner {
        fn new(key: &str) -> Self {
            let dir = TestDir::new(key);
            let runtime_dir = Some(dir.dir.clone());
            let config = PublisherConfig { runtime_dir, ..PublisherConfig::new(key) };
            let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
            Self { publisher, _dir: dir }
        }

        fn loan(&self) -> Loan {
            self.publisher.loan(SIZE).unwrap().unwrap()
        }
    }

    fn panics<T>(f: impl FnOnce() -> T) -> bool {
        catch_unwind(AssertUnwindSafe(|| drop(f()))).is_err()
    }

    #[test]
    fn loan_is_published_once_and_by_its_publisher_only() {
        let (one, other) = (Owner::new("loan-one"), Owner::new("loan-other"));
        let info = FrameInfo { size: SIZE, ..Default::default() };
        let loan = one.loan();
        assert_eq!(other.publisher.publish_in_place(&loan, &info, true), None);
        assert_eq!(one.publisher.publish_in_place(&loan, &info, true), Some(1));
        assert_eq!(one.publisher.publish_in_place(&loan, &info, true), None);
        assert!(panics(|| one.publisher.publish(loan, &info)));
        assert!(panics(|| other.publisher.publish(one.loan(), &info)));
        assert_eq!(one.publisher.publish(one.loan(), &info), 2);
        assert_eq!(one.publisher.stats().pool.published, 2);
        assert_eq!(other.publisher.stats().pool.published, 0);
    }

    #[test]
    fn loan_that_is_kept_after_its_publication_keeps_its_slot() {
        let owner = Owner::new("loan-kept");
        let info = FrameInfo { size: SIZE, ..Default::default() };
        let mut kept = owner.loan();
        kept.bytes_mut().fill(1);
        owner.publisher.publish_in_place(&kept, &info, true).unwrap();
        assert!(panics(|| kept.bytes_mut().len()), "a published frame is not writable");
        let address = kept.address();
        let publish = || {
            let loan = owner.loan();
            let address = loan.address();
            owner.publisher.publish(loan, &info);
            address
        };
        assert!((0..100).all(|_| publish() != address));
        drop(kept);
        assert!((0..100).any(|_| publish() == address));
    }

    /// Allocates host memory, and checks that the pool is not locked when memory is allocated or freed.
    #[derive(Default)]
    struct Observer(OnceLock<Weak<FramePublisher>>);

    /// Memory of an [`Observer`].
    struct Observed(Arc<dyn Chunk>, Weak<FramePublisher>);

    fn check_unlocked(frames: &Weak<FramePublisher>) {
        if let Some(frames) = frames.upgrade() {
            assert!(frames.pool.try_lock().is_ok(), "the pool is locked");
        }
    }

    impl Backend for Observer {
        fn kind(&self) -> Kind {
            Kind::Host
        }

        fn allocate(&self, slots: u32, size: usize) -> std::io::Result<Arc<dyn Chunk>> {
            let frames = self.0.get().unwrap();
            check_unlocked(frames);
            Ok(Arc::new(Observed(HostBackend.allocate(slots, size)?, frames.clone())))
        }
    }

    // SAFETY: all methods are those of the chunk inside.
    unsafe impl Chunk for Observed {
        fn geometry(&self) -> crate::memory::Geometry {
            self.0.geometry()
        }

        fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.fd()
        }

        fn address(&self, slot: u32) -> u64 {
            self.0.address(slot)
        }

        fn prepare(&self, slot: u32) -> std::io::Result<()> {
            check_unlocked(&self.1);
            self.0.prepare(slot)
        }
    }

    impl Drop for Observed {
        fn drop(&mut self) {
            check_unlocked(&self.1);
        }
    }

    fn observed() -> Arc<FramePublisher> {
        let observer = Arc::new(Observer::default());
        let config =
            FramePublisherConfig { window: 2, policy: Policy::Drop, credits: 100, epoch: 1 };
        let registry = Arc::new(Registry::new().unwrap());
        let frames = Arc::new(FramePublisher::new(observer.clone(), registry, config).unwrap());
        observer.0.set(Arc::downgrade(&frames)).unwrap();
        frames
    }

    #[test]
    fn memory_is_allocated_and_freed_without_the_lock() {
        let frames = observed();
        frames.set_format("small", SIZE, None).unwrap();
        let loans: Vec<_> = (0..10).map(|_| frames.loan(SIZE, None, &|| false).unwrap()).collect();
        drop(loans);
        frames.register_between_frames(20, |_| ()).unwrap();
        frames.set_format("large", 3 * SIZE, None).unwrap();
        assert!(!frames.maintain(Duration::ZERO), "the small slots are free");
        assert_eq!(frames.stats().slots, 2 + 13);
    }

    #[test]
    fn surplus_slots_are_kept_for_some_time() {
        let frames = observed();
        frames.set_format("caps", SIZE, None).unwrap();
        // As if a subscriber had joined and left.
        frames.register_between_frames(20, |_| ()).unwrap();
        let joined = frames.stats();
        assert_eq!(joined.slots, 2 + 20 + 1);
        let start = Duration::from_secs(100);
        assert!(frames.maintain(start));
        assert!(frames.maintain(start + SURPLUS_TIME - Duration::from_nanos(1)));
        assert_eq!(frames.stats(), joined);
        // One that joins now finds its slots.
        frames.register_between_frames(20, |_| ()).unwrap();
        assert_eq!(frames.stats(), joined);
        assert!(!frames.maintain(start + SURPLUS_TIME));
        assert_eq!(frames.stats().slots, 2 + 1);
    }

    #[test]
    fn loan_that_is_dropped_unpublished_is_lent_again() {
        let owner = Owner::new("loan-dropped");
        let loan = owner.loan();
        let address = loan.address();
        drop(loan);
        assert_eq!(owner.loan().address(), address);
    }

    const LARGE: usize = 3 * SIZE;
    const NEVER: Policy = Policy::Wait(Duration::MAX);

    /// Returns frames with a window of one frame, and slots of [`SIZE`].
    fn small(policy: Policy) -> Arc<FramePublisher> {
        let config = FramePublisherConfig { window: 1, policy, credits: 100, epoch: 1 };
        let registry = Arc::new(Registry::new().unwrap());
        let frames = FramePublisher::new(Arc::new(HostBackend), registry, config).unwrap();
        frames.set_format("small", SIZE, None).unwrap();
        Arc::new(frames)
    }

    fn join(frames: &FramePublisher, mode: Mode, credit: u32) -> Arc<SubscriberHandle> {
        let registry = &frames.slots.registry;
        let id = registry.subscribers().len() as u32;
        let slots = frames.slots.control.slots();
        let (subscriber, _) = subscriber(id, (mode, credit), slots);
        let add = |head| {
            subscriber.page.header().cursor.store(head, Ordering::Relaxed);
            registry.add_subscriber(subscriber.clone());
        };
        frames.register_between_frames(credit, add).unwrap();
        subscriber
    }

    fn loan(frames: &Arc<FramePublisher>, size: usize) -> Loan {
        frames.loan(size, None, &|| true).unwrap().expect("a free slot")
    }

    /// Publishes a frame and returns its slot.
    fn publish(frames: &Arc<FramePublisher>, size: usize) -> u32 {
        let loan = loan(frames, size);
        let slot = loan.slot;
        loan.publish(&FrameInfo { size, ..Default::default() }, true).unwrap();
        slot
    }

    /// Changes the size of the slots. Returns the number of new slots.
    fn enlarge(frames: &FramePublisher) -> u32 {
        let before = frames.stats().slots;
        frames.set_format("large", LARGE, None).unwrap();
        frames.stats().slots - before
    }

    /// Frees what can be freed, and checks that so many slots are left. Maintenance ends with the last old one.
    #[track_caller]
    fn check_left(frames: &FramePublisher, new: u32, old: u32) {
        for _ in 0..2 {
            assert_eq!(frames.maintain(Duration::ZERO), old > 0);
            assert_eq!(frames.stats().slots, new + old);
        }
    }

    #[test]
    fn newest_frame_keeps_its_old_slot() {
        let frames = small(Policy::Drop);
        publish(&frames, SIZE);
        publish(&frames, SIZE);
        let new = enlarge(&frames);
        check_left(&frames, new, 1);
        publish(&frames, LARGE);
        check_left(&frames, new, 0);
        assert_eq!(frames.stats().chunks, 1);
    }

    #[test]
    fn slot_on_loan_is_kept_when_its_chunk_retires() {
        for published in [false, true] {
            let frames = small(Policy::Drop);
            let lent = loan(&frames, SIZE);
            if published {
                lent.publish_in_place(&FrameInfo::default(), true).unwrap();
            }
            let new = enlarge(&frames);
            publish(&frames, LARGE);
            publish(&frames, LARGE);
            check_left(&frames, new, 1);
            drop(lent);
            check_left(&frames, new, 0);
        }
    }

    #[test]
    fn claimed_slot_is_kept_when_its_chunk_retires() {
        let frames = small(Policy::Drop);
        let subscriber = join(&frames, Mode::Newest, 1);
        let slot = publish(&frames, SIZE);
        subscriber.page.held(slot).store(1, Ordering::Relaxed);
        let new = enlarge(&frames);
        publish(&frames, LARGE);
        check_left(&frames, new, 1);
        assert_eq!(frames.slots.control.slot(slot).load(Ordering::Relaxed), 1);
        subscriber.page.held(slot).store(0, Ordering::Relaxed);
        check_left(&frames, new, 0);
        assert_eq!(frames.slots.control.slot(slot).load(Ordering::Relaxed), claim::EMPTY);
    }

    /// Under the policy *drop* a new pool would keep the frame as long as it has slots.
    #[test]
    fn unread_frame_keeps_its_old_slot() {
        for policy in [NEVER, Policy::Drop] {
            let frames = small(policy);
            let subscriber = join(&frames, Mode::Strict, 1);
            let others = [join(&frames, Mode::Newest, 1), join(&frames, Mode::Strict, 0)];
            publish(&frames, SIZE);
            let new = enlarge(&frames);
            assert_eq!(new, 1 + 2 + 1);
            for _ in 0..new - 1 {
                publish(&frames, LARGE);
            }
            check_left(&frames, new, 1);
            if policy == NEVER {
                publish(&frames, LARGE);
                check_left(&frames, new, 1);
                subscriber.page.header().cursor.store(1, Ordering::Relaxed);
            } else {
                publish(&frames, LARGE);
            }
            check_left(&frames, new, 0);
            drop(others);
        }
    }

    #[test]
    fn frames_of_a_subscriber_that_leaves_are_not_kept() {
        let frames = small(NEVER);
        let subscriber = join(&frames, Mode::Strict, 1);
        publish(&frames, SIZE);
        let new = enlarge(&frames);
        publish(&frames, LARGE);
        check_left(&frames, new, 1);
        subscriber.draining.store(true, Ordering::Relaxed);
        check_left(&frames, new, 0);
    }

    /// Seconds after the start, of a clock that the test sets.
    fn at(seconds: u64) -> Duration {
        Duration::from_secs(100) + Duration::from_secs(seconds)
    }

    /// Only the slots for credit that is gone are surplus, and the others are kept.
    #[test]
    fn only_surplus_slots_are_retired() {
        let frames = small(Policy::Drop);
        // As if subscribers had joined and left.
        frames.register_between_frames(20, |_| ()).unwrap();
        let stays = join(&frames, Mode::Newest, 5);
        assert_eq!(frames.stats().slots, 1 + 20 + 1);
        assert!(frames.maintain(at(0)) && !frames.maintain(at(3)));
        // Chunks are freed as a whole: these are two of 4 slots.
        assert_eq!(frames.stats().slots, 1 + 5 + 1 + 1);
        assert!(!frames.maintain(at(100)) && !frames.maintain(at(200)));
        assert_eq!(frames.stats().slots, 1 + 5 + 1 + 1);
        frames.slots.registry.remove_subscriber(stays.id);
        assert!(frames.maintain(at(201)) && !frames.maintain(at(204)));
        assert_eq!(frames.stats().slots, 4);
    }

    #[test]
    fn time_of_surplus_starts_again_after_it_was_used() {
        let frames = small(Policy::Drop);
        frames.register_between_frames(20, |_| ()).unwrap();
        assert!(frames.maintain(at(0)));
        let joins = join(&frames, Mode::Newest, 20);
        assert!(!frames.maintain(at(1)), "there is no surplus");
        frames.slots.registry.remove_subscriber(joins.id);
        for seconds in [2, 3, 4] {
            assert!(frames.maintain(at(seconds)));
            assert_eq!(frames.stats().slots, 1 + 20 + 1);
        }
        assert!(!frames.maintain(at(5)));
        assert_eq!(frames.stats().slots, 1 + 1);
    }

    /// A decoder that keeps many frames for a moment does not keep their memory for ever.
    #[test]
    fn reserve_for_loans_shrinks_again() {
        let frames = small(Policy::Drop);
        let reserve = || lock(&frames.pool).loan_reserve;
        let mut loans: Vec<_> = (0..10).map(|_| loan(&frames, SIZE)).collect();
        assert_eq!((frames.stats().slots, reserve()), (1 + 11, 11));
        assert!(!frames.maintain(at(0)));
        loans.truncate(2);
        // 10 were on loan at the last check.
        assert!(!frames.maintain(at(2)) && !frames.maintain(at(3)));
        assert_eq!((frames.stats().slots, reserve()), (1 + 11, 11));
        loans.push(loan(&frames, SIZE));
        loans.truncate(1);
        // 3 since then, which is rounded up.
        assert!(!frames.maintain(at(5)) && frames.maintain(at(6)));
        assert_eq!((frames.stats().slots, reserve()), (1 + 11, LOAN_STEP));
        assert!(frames.maintain(at(8)));
        assert_eq!(frames.stats().slots, 1 + 11);
        loans.clear();
        // Chunks of 1, 4 and 1 slots were surplus, and 2 and 4 remain.
        assert!(!frames.maintain(at(9)));
        assert_eq!(frames.stats().slots, 2 + 4);
    }

    /// Has no memory for chunks of fewer slots.
    struct Scarce(AtomicU32);

    impl Backend for Scarce {
        fn kind(&self) -> Kind {
            Kind::Host
        }

        fn allocate(&self, slots: u32, size: usize) -> std::io::Result<Arc<dyn Chunk>> {
            if slots < self.0.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::OutOfMemory.into());
            }
            HostBackend.allocate(slots, size)
        }
    }

    /// The server thread allocates the missing slots when there is memory again. Streaming threads do not try.
    #[test]
    fn missing_memory_is_found_later() {
        let scarce = Arc::new(Scarce(AtomicU32::new(4)));
        let registry = Arc::new(Registry::new().unwrap());
        let config =
            FramePublisherConfig { window: 4, policy: Policy::Drop, credits: 100, epoch: 1 };
        let frames = Arc::new(FramePublisher::new(scarce.clone(), registry, config).unwrap());
        frames.set_format("caps", SIZE, None).unwrap();
        assert_eq!(frames.stats().slots, 4);
        assert!(frames.maintain(at(0)) && frames.maintain(at(1)));
        assert!(frames.register_between_frames(1, |_| panic!("there is no memory")).is_err());
        scarce.0.store(0, Ordering::Relaxed);
        drop(loan(&frames, SIZE));
        assert_eq!(frames.stats().slots, 4);
        assert!(!frames.maintain(at(2)));
        assert_eq!(frames.stats().slots, 4 + 1);

        // The same for loans beyond the reserve.
        scarce.0.store(9, Ordering::Relaxed);
        let lent: Vec<_> = (0..5).map(|_| loan(&frames, SIZE)).collect();
        let next = || frames.loan(SIZE, None, &|| true).unwrap();
        assert!(next().is_none());
        scarce.0.store(0, Ordering::Relaxed);
        assert!(next().is_none());
        assert!(!frames.maintain(at(3)));
        assert!(next().is_some());
        drop(lent);
    }

    #[test]
    fn loan_allocates_slots_that_are_missing() {
        let frames = small(Policy::Drop);
        // As if another thread was about to allocate them.
        lock(&frames.pool).loan_reserve = 5;
        drop(loan(&frames, SIZE));
        assert_eq!(frames.stats().slots, 1 + 5);
    }

    /// The pixels of a frame are complete when the word of its own slot says so.
    #[test]
    fn each_slot_has_a_ready_word() {
        let frames = small(Policy::Drop);
        frames.register_between_frames(8, |_| ()).unwrap();
        let control = &frames.slots.control;
        let loans = [loan(&frames, SIZE), loan(&frames, SIZE), loan(&frames, SIZE)];
        let slots = [loans[0].slot, loans[1].slot, loans[2].slot];
        for (n, loan) in loans.into_iter().enumerate() {
            loan.publish(&FrameInfo::default(), n != 1).unwrap();
        }
        let ready = slots.map(|slot| control.ready(slot).load(Ordering::Relaxed));
        assert_eq!(ready, [1, 0, 3]);
    }
}
