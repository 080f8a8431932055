//! The publisher's slots: lent to be written, published, and used again when nobody reads them.

pub use super::backpressure::Policy;
use super::backpressure::{Backpressure, BackpressureWait};
use super::pool::{MAX_LOANS, Pool, Slots, Taken};
use super::registry::Registry;
use crate::error::{Context, Result};
use crate::memory::{Backend, Chunk, Kind};
use crate::shm::claim;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC, MAX_SLOTS, pack_index};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::record::Record;
use crate::shm::segments::Control;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{clock, futex, lock};
use crate::types::frame::FrameInfo;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// What the pool has, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    pub memory: Kind,
    pub published: u64,
    pub dropped: u64,
    pub slots: u32,
    pub chunks: u32,
    pub bytes: u64,
}

pub(crate) struct FramePublisher {
    pub slots: Slots,
    pub control_fd: OwnedFd,
    pub index_len: u32,
    pub backpressure: Backpressure,
    pool: Mutex<Pool>,
}

impl FramePublisher {
    pub fn new(
        backend: Arc<dyn Backend>,
        registry: Arc<Registry>,
        window: u32,
        policy: Policy,
        credits: u32,
        epoch: u64,
    ) -> Result<Self> {
        // Twice what is in use at most: a change of the frame size has old and new slots for a while. The
        // next one within that while takes from who has not read the old ones, or waits for it.
        let capacity = credits.saturating_add(window + MAX_LOANS).saturating_mul(2);
        let slots = capacity.min(MAX_SLOTS);
        let index_len = slots.next_power_of_two();
        let size = Control::size(slots, index_len);
        let (map, control_fd) = Mapping::create("cuframes-control", size, Sharing::ReadOnly)
            .context("make the control segment")?;
        let control = Control::new(map, slots, index_len);
        let h = control.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.slots.store(slots, Ordering::Relaxed);
        h.index.store(index_len, Ordering::Relaxed);
        h.epoch.store(epoch, Ordering::Relaxed);
        // Pairs with the Acquire of whoever opens the segment.
        h.magic.store(MAGIC, Ordering::Release);
        let pool = Pool {
            chunks: Vec::new(),
            next_chunk: 0,
            slots: (0..slots).map(|_| None).collect(),
            order: VecDeque::new(),
            spare: Vec::new(),
            slot_size: 0,
            backend,
            generation: 0,
            head: 0,
            head_generation: 0,
            dropped: 0,
            loans: 0,
            loan_reserve: 0,
            peers: Vec::new(),
            peers_version: 0,
        };
        Ok(Self {
            slots: Slots { control, registry, window, policy },
            control_fd,
            index_len,
            backpressure: Backpressure::new(policy),
            pool: Mutex::new(pool),
        })
    }

    /// FramePublisher from now on have these caps and need slots of this many bytes; `backend` makes them, if
    /// it is another than before.
    pub fn set_format(
        &self,
        caps: &str,
        slot_size: usize,
        backend: Option<Arc<dyn Backend>>,
    ) -> Result<()> {
        let mut pool = lock(&self.pool);
        let moved = backend.is_some_and(|backend| pool.move_to(&backend));
        pool.look_at_peers(&self.slots.registry);
        pool.generation += 1;
        self.slots.registry.format(pool.generation, caps, pool.head_generation);
        if moved || slot_size > pool.slot_size || slot_size < pool.slot_size / 2 {
            pool.retire_all(slot_size);
            // Whoever asks for a slot can wait for those who are in the way.
            self.slots.ensure_some(&mut pool)?;
        }
        Ok(())
    }

    /// Runs `join` while no frame is published and hands it the number of the last one, after the
    /// slots for `credit` more frames were made.
    pub fn reserve<T>(&self, credit: u32, join: impl FnOnce(u64) -> T) -> Result<T> {
        let mut pool = lock(&self.pool);
        pool.look_at_peers(&self.slots.registry);
        self.slots.ensure(&mut pool, credit)?;
        Ok(join(pool.head))
    }

    pub fn stats(&self) -> PoolStats {
        let pool = lock(&self.pool);
        PoolStats {
            memory: pool.backend.kind(),
            published: pool.head,
            dropped: pool.dropped,
            slots: pool.slots.iter().flatten().count() as u32,
            chunks: pool.chunks.len() as u32,
            bytes: pool
                .chunks
                .iter()
                .map(|c| c.memory.geometry().bytes().unwrap_or(0) as u64)
                .sum(),
        }
    }

    /// A slot for a frame of `size` bytes, in memory of `backend` where that is given. It is the caller's
    /// until it drops the loan. `None` if all are in use, or if it would have to be waited for and
    /// `cancelled` says not to.
    pub fn loan(
        self: &Arc<Self>,
        size: usize,
        backend: Option<&Arc<dyn Backend>>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>> {
        let mut patience = BackpressureWait::new(self.waits(), &self.slots.registry, cancelled);
        loop {
            let mut pool = lock(&self.pool);
            pool.look_at_peers(&self.slots.registry);
            if backend.is_some_and(|b| pool.move_to(b)) || size > pool.slot_size {
                pool.retire_all(size);
            }
            // Whoever joined before there was a format has no slots for its credit yet.
            if let Some(peer) = self.slots.ensure_some(&mut pool)? {
                drop(pool);
                if !patience.wait_for(peer, "a frame") {
                    return Ok(None);
                }
                continue;
            }
            self.slots.trim(&mut pool);
            // What is lent beyond the reserve takes nothing from subscribers, if there is memory for it.
            let may_grow = pool.loans >= pool.loan_reserve.max(1) && pool.loans < MAX_LOANS;
            let overwrites = self.slots.policy == Policy::Drop;
            let mut taken = self.slots.take(&mut pool, overwrites && !may_grow);
            if may_grow && !matches!(taken, Taken::Slot(_)) {
                if self.slots.grow(&mut pool) {
                    continue;
                }
                // It goes on with the slots that there are.
                taken = self.slots.take(&mut pool, overwrites);
            }
            match taken {
                Taken::Slot(slot) => return Ok(Some(self.lend(&mut pool, slot))),
                // What was kept from others is there now.
                Taken::Nothing if self.slots.blame(&pool) => {}
                Taken::Nothing => return Ok(None),
                Taken::WaitFor(peer) => {
                    drop(pool);
                    if !patience.wait_for(peer, "a frame") {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Counts a frame that was not published because there was no slot.
    pub fn count_dropped(&self) {
        let mut pool = lock(&self.pool);
        pool.dropped += 1;
        self.slots.control.header().status.dropped.store(pool.dropped, Ordering::Relaxed);
    }

    /// What a wait for subscribers takes.
    pub fn waits(&self) -> (&Backpressure, &AtomicU32) {
        (&self.backpressure, &self.slots.control.header().status.publisher_waits)
    }

    /// No frame comes any more, until one does.
    pub fn end(&self) {
        let h = self.slots.control.header();
        // Pairs with the Acquire in the reader: the last `head` was stored before.
        h.status.eos.store(1, Ordering::Release);
        h.futex.fetch_add(1, Ordering::Release);
        futex::wake_all(&h.futex);
    }

    fn lend(self: &Arc<Self>, pool: &mut Pool, number: u32) -> Loan {
        pool.loans += 1;
        let slot = pool.slots[number as usize].as_mut().expect("a slot that was taken exists");
        slot.loaned = true;
        slot.published = false;
        Loan {
            kind: pool.backend.kind(),
            memory: slot.memory.clone(),
            index: slot.index,
            slot: number,
            frames: self.clone(),
        }
    }

    /// Publishes what was written to the slot of a loan. `None` if that was published before.
    /// `ready` says that the pixels are complete; otherwise the device writes `ready` when they are.
    fn publish(&self, number: u32, info: &FrameInfo, ready: bool) -> Option<u64> {
        let h = self.slots.control.header();
        let mut pool = lock(&self.pool);
        let (generation, seq) = (pool.generation, pool.head + 1);
        let slot = pool.slots[number as usize].as_mut().filter(|s| s.loaned && !s.published)?;
        slot.published = true;
        let record = Record {
            seq,
            generation,
            chunk: slot.chunk,
            slot_in_chunk: slot.index,
            published: clock::now_ns(),
            info: info.clone(),
        };
        record.store(self.slots.control.record(number));
        claim::publish(self.slots.control.slot(number), seq);
        self.slots.control.index_entry(seq).store(pack_index(seq, number), Ordering::Relaxed);
        if ready {
            // Pairs with the Acquire in `Reader`: the pixels are written.
            h.ready.store(seq, Ordering::Release);
        }
        h.status.eos.store(0, Ordering::Relaxed);
        // Pairs with the Acquire in the reader: record, slot number and index are written.
        h.head.store(seq, Ordering::Release);
        pool.head = seq;
        pool.head_generation = generation;
        pool.order.push_back(number);
        drop(pool);
        h.futex.fetch_add(1, Ordering::Release);
        futex::wake_all(&h.futex);
        let published = record.published;
        tracing::trace!(name: "rung", target: "cuframes::steps", published);
        Some(seq)
    }

    /// Publishes the loaned slot that an address falls into. `info` is handed the distance from the
    /// slot's start. `None` if it is no such slot, or was published before.
    pub fn publish_at(
        &self,
        address: u64,
        ready: bool,
        info: impl FnOnce(u64) -> FrameInfo,
    ) -> Option<u64> {
        let (number, offset) = {
            let pool = lock(&self.pool);
            pool.chunks.iter().find_map(|c| {
                let offset = address.checked_sub(c.memory.address(0))?;
                let stride = c.memory.geometry().stride;
                let number = c.numbers.get((offset / stride) as usize)?;
                Some((*number, offset % stride))
            })?
        };
        self.publish(number, &info(offset), ready)
    }

    fn give_back(&self, number: u32) {
        let mut pool = lock(&self.pool);
        pool.loans -= 1;
        let slot = pool.slots[number as usize].as_mut().expect("a loaned slot stays");
        slot.loaned = false;
        if !slot.published {
            pool.order.push_front(number);
        }
    }
}

/// A slot to write a frame to. Dropped without being published, it is free again at once.
pub struct Loan {
    frames: Arc<FramePublisher>,
    slot: u32,
    kind: Kind,
    memory: Arc<dyn Chunk>,
    /// Of the slot in its chunk.
    index: u32,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan").field("slot", &self.slot).field("size", &self.len()).finish()
    }
}

impl Loan {
    /// Where the slot begins: an address of the CPU or of the device, by the publisher's kind of memory.
    pub fn address(&self) -> u64 {
        self.memory.address(self.index)
    }

    /// What the slot is a part of.
    pub fn memory(&self) -> &Arc<dyn Chunk> {
        &self.memory
    }

    /// Bytes of the slot.
    pub fn len(&self) -> usize {
        self.memory.geometry().size as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where subscribers wait for an event: what has to be recorded behind the work that writes the
    /// frame, before it is published.
    pub fn event(&self) -> Option<&crate::cuda::Event> {
        self.memory.event(self.index)
    }

    /// The bytes to write, of a publisher of host memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.kind, Kind::Host);
        // SAFETY: the slot is `size` bytes of a mapping that the loan keeps alive. While it is on loan
        // and not published no subscriber has a claim on it, and no other loan has it; `&mut self`
        // says the same for this one. (Only `FramePublisher::publish_at` publishes a loan that lives on, and
        // the sink, its one caller, has no bytes of the loan borrowed then.)
        unsafe { std::slice::from_raw_parts_mut(self.address() as *mut u8, self.len()) }
    }

    pub(crate) fn publish(&self, info: &FrameInfo, ready: bool) -> Option<u64> {
        self.frames.publish(self.slot, info, ready)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.frames.give_back(self.slot);
    }
}
