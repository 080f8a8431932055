//! The publisher's slots: lent to be written, published, and used again when nobody reads them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::claim;
use super::patience::Patience;
use crate::core::board::{Board, Peer, lock};
use crate::core::channel::message::{Code, Message, Mode};
use crate::core::error::{Context, Error, Result};
use crate::core::layout::{FrameInfo, LAYOUT_VERSION, MAGIC, MAX_SLOTS, Record, pack_index};
use crate::core::shm::{Control, Mapping, Sharing};
use crate::core::sync::{AtomicBool, Ordering};
use crate::core::wake;
use crate::memory::{Backend, Chunk, Kind};

/// Slots that upstream may have at a time: a decoder's reference pictures and those in its threads.
const MAX_LOANS: u32 = 64;
/// How often a free slot is searched for, as long as subscribers move on.
const SEARCHES: u32 = 64;
/// Slots are added for upstream by this many, so that a decoder that starts does not make a chunk each.
const LOAN_STEP: u32 = 4;

/// What happens to a new frame when subscribers are not done with the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The publisher never waits; a frame for which there is no slot is dropped.
    Drop,
    /// The publisher waits until every strict subscriber has taken a frame before it reuses its slot,
    /// but for one frame no longer than this.
    Wait(Duration),
}

struct Slot {
    chunk: u32,
    index: u32,
    memory: Arc<dyn Chunk>,
    /// Somebody upstream has it: writing, or still reading after it was published.
    loaned: bool,
    published: bool,
}

struct LiveChunk {
    id: u32,
    memory: Arc<dyn Chunk>,
    /// The numbers of its slots.
    numbers: Vec<u32>,
    /// Slots that are not retired.
    slots: u32,
    retiring: bool,
}

struct ChunkFd(Arc<dyn Chunk>);

impl AsFd for ChunkFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

struct Pool {
    chunks: Vec<LiveChunk>,
    next_chunk: u32,
    /// By slot number; `None` where the number is free.
    slots: Vec<Option<Slot>>,
    /// The slots that are not being written, in the order in which they may be used again.
    order: VecDeque<u32>,
    /// Slots that were never used: their memory costs nothing before it is touched.
    spare: Vec<u32>,
    slot_size: usize,
    /// Makes the slots.
    backend: Arc<dyn Backend>,
    generation: u32,
    /// Sequence number of the last published frame, and its generation.
    head: u64,
    head_generation: u32,
    dropped: u64,
    loans: u32,
    loan_reserve: u32,
    peers: Vec<Arc<Peer>>,
    peers_version: u64,
}

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

pub(crate) struct Frames {
    pub control: Control,
    pub control_fd: OwnedFd,
    pub index_len: u32,
    board: Arc<Board>,
    window: u32,
    pub policy: Policy,
    /// The publisher is gone; only loans are left.
    closed: AtomicBool,
    pool: Mutex<Pool>,
}

enum Taken {
    Slot(u32),
    /// This subscriber has to move on first.
    WaitFor(Arc<Peer>),
    Nothing,
}

impl Frames {
    pub fn new(
        backend: Arc<dyn Backend>,
        board: Arc<Board>,
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
            control,
            control_fd,
            index_len,
            board,
            window,
            policy,
            closed: AtomicBool::new(false),
            pool: Mutex::new(pool),
        })
    }

    /// Frames from now on have these caps and need slots of this many bytes; `backend` makes them, if
    /// it is another than before.
    pub fn set_format(
        &self,
        caps: &str,
        slot_size: usize,
        backend: Option<Arc<dyn Backend>>,
    ) -> Result<()> {
        let mut pool = lock(&self.pool);
        let moved = backend.is_some_and(|backend| pool.move_to(&backend));
        pool.look_at_peers(&self.board);
        pool.generation += 1;
        self.board.format(pool.generation, caps, pool.head_generation);
        if moved || slot_size > pool.slot_size || slot_size < pool.slot_size / 2 {
            pool.retire_all(slot_size);
            // Whoever asks for a slot can wait for those who are in the way.
            self.ensure_some(&mut pool)?;
        }
        Ok(())
    }

    /// Runs `join` while no frame is published and hands it the number of the last one, after the
    /// slots for `credit` more frames were made.
    pub fn reserve<T>(&self, credit: u32, join: impl FnOnce(u64) -> T) -> Result<T> {
        let mut pool = lock(&self.pool);
        pool.look_at_peers(&self.board);
        self.ensure(&mut pool, credit)?;
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
        let mut patience = Patience::new(self, &self.board, cancelled);
        loop {
            let mut pool = lock(&self.pool);
            pool.look_at_peers(&self.board);
            if backend.is_some_and(|b| pool.move_to(b)) || size > pool.slot_size {
                pool.retire_all(size);
            }
            // Whoever joined before there was a format has no slots for its credit yet.
            if let Some(peer) = self.ensure_some(&mut pool)? {
                drop(pool);
                if !patience.wait_for(peer, "a frame") {
                    return Ok(None);
                }
                continue;
            }
            self.trim(&mut pool);
            // What is lent beyond the reserve takes nothing from subscribers, if there is memory for it.
            let may_grow = pool.loans >= pool.loan_reserve.max(1) && pool.loans < MAX_LOANS;
            let overwrites = self.policy == Policy::Drop;
            let mut taken = self.take(&mut pool, overwrites && !may_grow);
            if may_grow && !matches!(taken, Taken::Slot(_)) {
                if self.grow(&mut pool) {
                    continue;
                }
                // It goes on with the slots that there are.
                taken = self.take(&mut pool, overwrites);
            }
            match taken {
                Taken::Slot(slot) => return Ok(Some(self.lend(&mut pool, slot))),
                // What was kept from others is there now.
                Taken::Nothing if self.blame(&pool) => {}
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

    /// Makes slots for what upstream has. False if there is no memory for them.
    fn grow(&self, pool: &mut Pool) -> bool {
        let before = pool.loan_reserve;
        pool.loan_reserve = (pool.loans + LOAN_STEP).min(MAX_LOANS);
        let grown = self.ensure(pool, 0);
        if let Err(e) = &grown {
            tracing::debug!(%e, "the frame pool can't grow");
            pool.loan_reserve = before;
        }
        grown.is_ok()
    }

    /// Counts a frame that was not published because there was no slot.
    pub fn count_dropped(&self) {
        let mut pool = lock(&self.pool);
        pool.dropped += 1;
        self.control.header().status.dropped.store(pool.dropped, Ordering::Relaxed);
    }

    /// The publisher is gone: nobody waits for subscribers any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Nobody is waited for any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// No frame comes any more, until one does.
    pub fn end(&self) {
        let h = self.control.header();
        // Pairs with the Acquire in the reader: the last `head` was stored before.
        h.status.eos.store(1, Ordering::Release);
        h.futex.fetch_add(1, Ordering::Release);
        wake::wake_all(&h.futex);
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

    /// A slot that nobody needs: the oldest of those that go round, or one that was never used.
    ///
    /// A subscriber that goes from frame to frame during the search can be met in each of them, though
    /// it never holds more than its credit. Then there is a free slot, and another search finds it.
    fn take(&self, pool: &mut Pool, overwrites: bool) -> Taken {
        let mut taken = self.search(pool, overwrites);
        for _ in 1..SEARCHES {
            if !matches!(taken, Taken::Nothing) {
                break;
            }
            std::hint::spin_loop();
            taken = self.search(pool, overwrites);
        }
        taken
    }

    /// The newest frames stay for those who are just waking up.
    fn is_newest(&self, seq: u64, head: u64) -> bool {
        seq != claim::EMPTY && seq + u64::from(self.window) > head
    }

    /// With `overwrites` also one that somebody strict has still to take.
    fn search(&self, pool: &mut Pool, overwrites: bool) -> Taken {
        let Pool { order, spare, slots, chunks, peers, peers_version, head, .. } = pool;
        // Few slots go round, from the oldest frame on: their memory stays in the caches, and the rest
        // stays unused until it is needed.
        for at in 0..order.len() {
            let number = order[at];
            let slot_seq = self.control.slot(number);
            let seq = slot_seq.load(Ordering::Relaxed);
            if seq != claim::EMPTY {
                if self.is_newest(seq, *head) {
                    break;
                }
                // Who is strict finds what it has still to take as long as there is other room.
                if let Some(peer) = peers.iter().find(|p| is_behind(p, seq)) {
                    match spare.pop() {
                        Some(number) => return Taken::Slot(number),
                        None if !overwrites => return Taken::WaitFor(peer.clone()),
                        None => {}
                    }
                }
            }
            let slot = slots[number as usize].as_ref().expect("slots in order exist");
            if slot.loaned || chunks.iter().any(|c| c.retiring && c.id == slot.chunk) {
                continue;
            }
            if claim::retire(slot_seq, || held_by_any(&self.board, peers, peers_version, number)) {
                order.remove(at);
                return Taken::Slot(number);
            }
        }
        spare.pop().map_or(Taken::Nothing, Taken::Slot)
    }

    /// No slot is left: subscribers that hold more than they may are sent away. True if there was one.
    fn blame(&self, pool: &Pool) -> bool {
        let mut blamed = false;
        for peer in &pool.peers {
            // One that moves on meanwhile can be met in more frames than it holds; one that holds too many
            // is met in the same ones again. Since no frame comes now, who keeps to the rules stands still
            // before it has claimed and released each slot once.
            let mut claims = peer.page.claims();
            for _ in 0..4 * self.control.slots() {
                let before = std::mem::replace(&mut claims, peer.page.claims());
                if claims == before {
                    break;
                }
            }
            let held = claims.iter().filter(|c| **c != claim::EMPTY).count();
            if held > peer.credit as usize && !peer.forfeited.swap(true, Ordering::Relaxed) {
                // It would keep slots that others are entitled to; who reads them reads what it finds.
                let text = format!(
                    "it holds {held} frames with a credit of {}: run the same version of cuframes on both sides",
                    peer.credit
                );
                self.board.kick(peer, Code::OverCredit, text);
                blamed = true;
            }
        }
        blamed
    }

    /// Publishes what was written to the slot of a loan. `None` if that was published before.
    /// `ready` says that the pixels are complete; otherwise the device writes `ready` when they are.
    fn publish(&self, number: u32, info: &FrameInfo, ready: bool) -> Option<u64> {
        let h = self.control.header();
        let mut pool = lock(&self.pool);
        let (generation, seq) = (pool.generation, pool.head + 1);
        let slot = pool.slots[number as usize].as_mut().filter(|s| s.loaned && !s.published)?;
        slot.published = true;
        let record = Record {
            seq,
            generation,
            chunk: slot.chunk,
            slot_in_chunk: slot.index,
            published: wake::now_ns(),
            info: info.clone(),
        };
        record.store(self.control.record(number));
        claim::publish(self.control.slot(number), seq);
        self.control.index(seq).store(pack_index(seq, number), Ordering::Relaxed);
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
        wake::wake_all(&h.futex);
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

    /// Makes slots, as many as there is room for. Where there is none for a single one, returns who has to
    /// take frames first, if the policy is to wait for that.
    fn ensure_some(&self, pool: &mut Pool) -> Result<Option<Arc<Peer>>> {
        let Err(e) = self.ensure(pool, 0) else { return Ok(None) };
        if pool.capacity() > 0 {
            tracing::warn!(%e, "the frame pool is too small for its subscribers");
            return Ok(None);
        }
        let peer = self.in_the_way(pool);
        if peer.is_none() {
            // Who was may just have moved on.
            self.ensure(pool, 0)?;
        }
        Ok(peer)
    }

    /// Who has still to take one of the frames that are not kept for others.
    fn in_the_way(&self, pool: &Pool) -> Option<Arc<Peer>> {
        let seqs = pool.order.iter().map(|n| self.control.slot(*n).load(Ordering::Relaxed));
        let mut old = seqs.filter(|seq| *seq != claim::EMPTY && !self.is_newest(*seq, pool.head));
        let waits = self.policy != Policy::Drop;
        old.find_map(|seq| pool.peers.iter().find(|p| waits && is_behind(p, seq)).cloned())
    }

    /// Makes slots until there are enough for the window, everybody's credit, and upstream.
    fn ensure(&self, pool: &mut Pool, more_credit: u32) -> Result<()> {
        // Without a format there is nothing to make; whoever sets one comes back here.
        if pool.slot_size == 0 {
            return Ok(());
        }
        let missing = (pool.needed(self.window) + more_credit).saturating_sub(pool.capacity());
        if missing == 0 {
            return Ok(());
        }
        let made = self.make(pool, missing);
        if made.is_err() && pool.chunks.iter().any(|c| c.retiring) {
            self.free_retiring(pool);
            return self.make(pool, missing);
        }
        made
    }

    fn make(&self, pool: &mut Pool, missing: u32) -> Result<()> {
        let free: Vec<u32> = (0..self.control.slots())
            .filter(|n| pool.slots[*n as usize].is_none())
            .take(missing as usize)
            .collect();
        if free.len() < missing as usize {
            return Err(Error::Value {
                what: "The frame pool",
                problem: "has no slot numbers left: lower max-subscribers or max-credit".into(),
            });
        }
        let memory =
            pool.backend.allocate(missing, pool.slot_size).context("get memory for frames")?;
        pool.next_chunk += 1;
        let id = pool.next_chunk;
        let g = memory.geometry();
        let (kind, device) = (pool.backend.kind() as u32, pool.backend.device());
        let (slots, stride, size) = (g.slots, g.stride, g.size);
        let message = Message::Chunk { id, kind, device, slots, stride, size };
        self.board.chunk(id, message, Arc::new(ChunkFd(memory.clone())));
        for (index, &number) in (0..).zip(&free) {
            let (chunk, memory) = (id, memory.clone());
            pool.slots[number as usize] =
                Some(Slot { chunk, index, memory, loaned: false, published: false });
            pool.spare.push(number);
        }
        pool.chunks.push(LiveChunk { id, memory, numbers: free, slots, retiring: false });
        tracing::debug!(chunk = id, slots, bytes = g.bytes(), "pool grew");
        Ok(())
    }

    /// Frees what is not needed any more.
    fn trim(&self, pool: &mut Pool) {
        let surplus = pool.capacity().saturating_sub(pool.needed(self.window));
        if surplus > 0 {
            let Pool { chunks, slots, peers, .. } = pool;
            let idle = |c: &LiveChunk| {
                let in_use = |n: &u32| {
                    slots[*n as usize].as_ref().is_some_and(|s| s.loaned)
                        || peers.iter().any(|p| claim::is_held(p.page.held(*n)))
                };
                !c.numbers.iter().any(in_use)
            };
            let fits = |c: &&mut LiveChunk| !c.retiring && c.slots <= surplus;
            // One that is in use goes too, but not before its frames are released.
            if let Some(chunk) = chunks.iter_mut().filter(fits).max_by_key(|c| (idle(c), c.slots)) {
                chunk.retiring = true;
            }
        }
        if pool.chunks.iter().any(|c| c.retiring) {
            self.free_retiring(pool);
        }
    }

    fn free_retiring(&self, pool: &mut Pool) {
        let depth = u64::from(pool.capacity());
        let Pool { order, spare, slots, chunks, peers, peers_version, head, .. } = pool;
        spare.retain(|number| {
            let slot = slots[*number as usize].as_ref().expect("spare slots exist");
            let chunk =
                chunks.iter_mut().find(|c| c.id == slot.chunk).expect("a slot's chunk exists");
            if chunk.retiring {
                chunk.slots -= 1;
                slots[*number as usize] = None;
            }
            !chunk.retiring
        });
        order.retain(|number| {
            let slot = slots[*number as usize].as_ref().expect("slots in order exist");
            let chunk =
                chunks.iter_mut().find(|c| c.id == slot.chunk).expect("a slot's chunk exists");
            if !chunk.retiring {
                return true;
            }
            let slot_seq = self.control.slot(*number);
            let seq = slot_seq.load(Ordering::Relaxed);
            // Nobody loses by the smaller pool what it would not lose in it. Where there is no other,
            // for want of room, that is all.
            let is_kept = self.policy != Policy::Drop || seq + depth > *head;
            let needed = self.is_newest(seq, *head)
                || slot.loaned
                || is_kept && peers.iter().any(|p| is_behind(p, seq));
            if needed {
                return true;
            }
            let free =
                claim::retire(slot_seq, || held_by_any(&self.board, peers, peers_version, *number));
            if free {
                chunk.slots -= 1;
                slots[*number as usize] = None;
            }
            !free
        });
        pool.chunks.retain(|chunk| {
            if chunk.slots == 0 {
                self.board.retire(chunk.id);
                tracing::debug!(chunk = chunk.id, "pool shrank");
            }
            chunk.slots > 0
        });
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

/// Whether this subscriber has still to take frame `seq`, and wants to.
fn is_behind(peer: &Peer, seq: u64) -> bool {
    peer.credit > 0
        && peer.mode == Mode::Strict
        && !peer.leaving.load(Ordering::Relaxed)
        // Pairs with the Release in the reader: what it took is claimed.
        && peer.page.header().cursor.load(Ordering::Acquire) < seq
}

fn held_by_any(board: &Board, peers: &mut Vec<Arc<Peer>>, version: &mut u64, slot: u32) -> bool {
    // Behind the fence in `claim::retire` this sees everybody who was welcomed before their fence.
    if board.version() != *version {
        (*version, *peers) = board.peers();
    }
    peers.iter().any(|p| !p.forfeited.load(Ordering::Relaxed) && claim::is_held(p.page.held(slot)))
}

impl Pool {
    /// Has the backend make the slots from now on. True if it is another than before.
    fn move_to(&mut self, backend: &Arc<dyn Backend>) -> bool {
        let moved = !Arc::ptr_eq(&self.backend, backend);
        if moved {
            self.backend = backend.clone();
        }
        moved
    }

    fn look_at_peers(&mut self, board: &Board) {
        if board.version() != self.peers_version {
            (self.peers_version, self.peers) = board.peers();
        }
    }

    /// From now on slots have this size. Frames that are in use stay until they are released.
    fn retire_all(&mut self, size: usize) {
        for chunk in &mut self.chunks {
            chunk.retiring = true;
        }
        self.slot_size = size;
    }

    /// Slots that are in use at most.
    fn needed(&self, window: u32) -> u32 {
        let credits: u32 = self.peers.iter().map(|p| p.credit).sum();
        window + credits + self.loan_reserve.max(1)
    }

    fn capacity(&self) -> u32 {
        self.chunks.iter().filter(|c| !c.retiring).map(|c| c.memory.geometry().slots).sum()
    }
}

/// A slot to write a frame to. Dropped without being published, it is free again at once.
pub struct Loan {
    frames: Arc<Frames>,
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
    pub fn event(&self) -> Option<&crate::gpu::Event> {
        self.memory.event(self.index)
    }

    /// The bytes to write, of a publisher of host memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.kind, Kind::Host);
        // SAFETY: the slot is `size` bytes of a mapping that the loan keeps alive. While it is on loan
        // and not published no subscriber has a claim on it, and no other loan has it; `&mut self`
        // says the same for this one. (Only `Frames::publish_at` publishes a loan that lives on, and
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
