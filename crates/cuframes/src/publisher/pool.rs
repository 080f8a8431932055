//! The publisher's slots: which are free, and how many there are.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::backpressure::Policy;
use super::registry::{Registry, SubscriberHandle};
use crate::error::{Context, Error, Result};
use crate::memory::{Backend, Chunk};
use crate::protocol::message::Message;
use crate::shm::claim;
use crate::shm::segments::Control;
use crate::sync::atomic::Ordering;
use crate::types::code::{Mode, RefusalReason};

/// Slots that upstream may have at a time: a decoder's reference pictures and those in its threads.
pub(super) const MAX_LOANS: u32 = 64;

/// How often a free slot is searched for, as long as subscribers move on.
pub(super) const SEARCHES: u32 = 64;

/// Slots are added for upstream by this many, so that a decoder that starts does not make a chunk each.
pub(super) const LOAN_STEP: u32 = 4;

pub(super) struct Slot {
    pub chunk: u32,
    pub index: u32,
    pub memory: Arc<dyn Chunk>,
    /// Somebody upstream has it: writing, or still reading after it was published.
    pub loaned: bool,
    pub published: bool,
}

pub(super) struct LiveChunk {
    pub id: u32,
    pub memory: Arc<dyn Chunk>,
    /// The numbers of its slots.
    pub numbers: Vec<u32>,
    /// Slots that are not retired.
    pub slots: u32,
    pub retiring: bool,
}

pub(super) struct ChunkFd(Arc<dyn Chunk>);

impl AsFd for ChunkFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

pub(super) struct Pool {
    pub chunks: Vec<LiveChunk>,
    pub next_chunk: u32,
    /// By slot number; `None` where the number is free.
    pub slots: Vec<Option<Slot>>,
    /// The slots that are not being written, in the order in which they may be used again.
    pub order: VecDeque<u32>,
    /// Slots that were never used: their memory costs nothing before it is touched.
    pub spare: Vec<u32>,
    pub slot_size: usize,
    /// Makes the slots.
    pub backend: Arc<dyn Backend>,
    pub generation: u32,
    /// Sequence number of the last published frame, and its generation.
    pub head: u64,
    pub head_generation: u32,
    pub dropped: u64,
    pub loans: u32,
    pub loan_reserve: u32,
    pub peers: Vec<Arc<SubscriberHandle>>,
    pub peers_version: u64,
}

pub(super) enum Taken {
    Slot(u32),
    /// This subscriber has to move on first.
    WaitFor(Arc<SubscriberHandle>),
    Nothing,
}

/// Whether this subscriber has still to take frame `seq`, and wants to.
pub(super) fn is_behind(peer: &SubscriberHandle, seq: u64) -> bool {
    peer.credit > 0
        && peer.mode == Mode::Strict
        && !peer.leaving.load(Ordering::Relaxed)
        // Pairs with the Release in the reader: what it took is claimed.
        && peer.page.header().cursor.load(Ordering::Acquire) < seq
}

pub(super) fn held_by_any(
    registry: &Registry,
    peers: &mut Vec<Arc<SubscriberHandle>>,
    version: &mut u64,
    slot: u32,
) -> bool {
    // Behind the fence in `claim::retire` this sees everybody who was welcomed before their fence.
    if registry.version() != *version {
        (*version, *peers) = registry.peers();
    }
    peers.iter().any(|p| !p.forfeited.load(Ordering::Relaxed) && claim::is_held(p.page.held(slot)))
}

impl Pool {
    /// Has the backend make the slots from now on. True if it is another than before.
    pub fn move_to(&mut self, backend: &Arc<dyn Backend>) -> bool {
        let moved = !Arc::ptr_eq(&self.backend, backend);
        if moved {
            self.backend = backend.clone();
        }
        moved
    }

    pub fn look_at_peers(&mut self, registry: &Registry) {
        if registry.version() != self.peers_version {
            (self.peers_version, self.peers) = registry.peers();
        }
    }

    /// From now on slots have this size. FramePublisher that are in use stay until they are released.
    pub fn retire_all(&mut self, size: usize) {
        for chunk in &mut self.chunks {
            chunk.retiring = true;
        }
        self.slot_size = size;
    }

    /// Slots that are in use at most.
    pub fn needed(&self, window: u32) -> u32 {
        let credits: u32 = self.peers.iter().map(|p| p.credit).sum();
        window + credits + self.loan_reserve.max(1)
    }

    pub fn capacity(&self) -> u32 {
        self.chunks.iter().filter(|c| !c.retiring).map(|c| c.memory.geometry().slots).sum()
    }
}

/// What decides about slots and does not change.
pub(crate) struct Slots {
    pub control: Control,
    pub registry: Arc<Registry>,
    pub window: u32,
    pub policy: Policy,
}

impl Slots {
    /// A slot that nobody needs: the oldest of those that go round, or one that was never used.
    ///
    /// A subscriber that goes from frame to frame during the search can be met in each of them, though
    /// it never holds more than its credit. Then there is a free slot, and another search finds it.
    pub fn take(&self, pool: &mut Pool, overwrites: bool) -> Taken {
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
    pub fn is_newest(&self, seq: u64, head: u64) -> bool {
        seq != claim::EMPTY && seq + u64::from(self.window) > head
    }

    /// With `overwrites` also one that somebody strict has still to take.
    pub fn search(&self, pool: &mut Pool, overwrites: bool) -> Taken {
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
            if claim::retire(slot_seq, || held_by_any(&self.registry, peers, peers_version, number))
            {
                order.remove(at);
                return Taken::Slot(number);
            }
        }
        spare.pop().map_or(Taken::Nothing, Taken::Slot)
    }

    /// No slot is left: subscribers that hold more than they may are sent away. True if there was one.
    pub fn blame(&self, pool: &Pool) -> bool {
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
                self.registry.kick(peer, RefusalReason::OverCredit, text);
                blamed = true;
            }
        }
        blamed
    }

    /// Makes slots, as many as there is room for. Where there is none for a single one, returns who has to
    /// take frames first, if the policy is to wait for that.
    pub fn ensure_some(&self, pool: &mut Pool) -> Result<Option<Arc<SubscriberHandle>>> {
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
    pub fn in_the_way(&self, pool: &Pool) -> Option<Arc<SubscriberHandle>> {
        let seqs = pool.order.iter().map(|n| self.control.slot(*n).load(Ordering::Relaxed));
        let mut old = seqs.filter(|seq| *seq != claim::EMPTY && !self.is_newest(*seq, pool.head));
        let waits = self.policy != Policy::Drop;
        old.find_map(|seq| pool.peers.iter().find(|p| waits && is_behind(p, seq)).cloned())
    }

    /// Makes slots until there are enough for the window, everybody's credit, and upstream.
    pub fn ensure(&self, pool: &mut Pool, more_credit: u32) -> Result<()> {
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

    pub fn make(&self, pool: &mut Pool, missing: u32) -> Result<()> {
        let free: Vec<u32> = (0..self.control.slots())
            .filter(|n| pool.slots[*n as usize].is_none())
            .take(missing as usize)
            .collect();
        if free.len() < missing as usize {
            return Err(Error::InvalidConfig {
                what: "The frame pool",
                problem:
                    "has no slot numbers left: lower max-subscribers or max-frames-per-subscriber"
                        .into(),
            });
        }
        let memory =
            pool.backend.allocate(missing, pool.slot_size).context("get memory for frames")?;
        pool.next_chunk += 1;
        let id = pool.next_chunk;
        let g = memory.geometry();
        let (kind, device) = (pool.backend.kind() as u32, pool.backend.device().0);
        let (slots, stride, size) = (g.slots, g.stride, g.size);
        let message = Message::Chunk { id, kind, device, slots, stride, size };
        self.registry.chunk(id, message, Arc::new(ChunkFd(memory.clone())));
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

    /// Makes slots for what upstream has. False if there is no memory for them.
    pub fn grow(&self, pool: &mut Pool) -> bool {
        let before = pool.loan_reserve;
        pool.loan_reserve = (pool.loans + LOAN_STEP).min(MAX_LOANS);
        let grown = self.ensure(pool, 0);
        if let Err(e) = &grown {
            tracing::debug!(%e, "the frame pool can't grow");
            pool.loan_reserve = before;
        }
        grown.is_ok()
    }

    /// Frees what is not needed any more.
    pub fn trim(&self, pool: &mut Pool) {
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

    pub fn free_retiring(&self, pool: &mut Pool) {
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
            let free = claim::retire(slot_seq, || {
                held_by_any(&self.registry, peers, peers_version, *number)
            });
            if free {
                chunk.slots -= 1;
                slots[*number as usize] = None;
            }
            !free
        });
        pool.chunks.retain(|chunk| {
            if chunk.slots == 0 {
                self.registry.retire(chunk.id);
                tracing::debug!(chunk = chunk.id, "pool shrank");
            }
            chunk.slots > 0
        });
    }
}
