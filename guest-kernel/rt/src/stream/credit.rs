//! Who may still send how much (virtio 1.2 §5.10.6.3). Counters are modulo 2³².

use wharf_abi::stream::Header;

/// The credit of one connection, both ways.
#[derive(Debug)]
pub(super) struct Credit {
    /// Bytes that are kept for the peer at most.
    window: u32,
    /// Bytes that came.
    received: u32,
    /// Bytes that the reader has taken.
    forwarded: u32,
    /// `forwarded` as the peer last heard it.
    told: u32,
    /// Bytes that were sent.
    sent: u32,
    /// Bytes that the peer keeps at most.
    peer_window: u32,
    /// Bytes that the peer says it has passed on.
    peer_forwarded: u32,
}

impl Credit {
    /// Before the first byte: nothing may be sent until the peer has said its window.
    pub(super) const fn new(window: u32) -> Self {
        Self::starting_at(window, 0)
    }

    /// As [`new`](Self::new), with so many bytes sent and received already.
    pub(super) const fn starting_at(window: u32, count: u32) -> Self {
        Self {
            window,
            received: count,
            forwarded: count,
            told: count,
            sent: count,
            peer_window: 0,
            peer_forwarded: count,
        }
    }

    /// Takes what a packet says of its sender.
    pub(super) const fn hear(&mut self, header: &Header) {
        self.peer_window = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// Bytes that may be sent now; none when the peer talks nonsense.
    pub(super) const fn sendable(&self) -> u32 {
        let unread = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_window.saturating_sub(unread)
    }

    /// Counts bytes that are on their way to the peer.
    pub(super) const fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Counts bytes that came; false when the peer should not have sent them.
    #[must_use]
    pub(super) const fn accept(&mut self, bytes: u32) -> bool {
        let unread = self.received.wrapping_sub(self.forwarded);
        if bytes > self.window.saturating_sub(unread) {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    /// Counts bytes that the reader has taken.
    pub(super) const fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the peer has to hear of what the reader took: it was half of what the
    /// peer was promised. Earlier is not worth a packet, and later it would wait.
    pub(super) const fn is_update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= self.window / 2
    }

    /// Tells the peer in the header of a packet.
    pub(super) const fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = self.window;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_abi::stream::Header;

    use super::Credit;

    fn said(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn nothing_may_be_sent_before_the_peer_has_spoken() {
        assert_eq!(Credit::new(100).sendable(), 0);
    }

    #[test]
    fn a_peer_that_passed_on_more_than_it_got_gets_nothing() {
        let mut credit = Credit::new(100);
        credit.hear(&said(1000, 1));
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn a_window_that_shrinks_below_what_is_under_way_stops_the_sender() {
        let mut credit = Credit::new(100);
        credit.hear(&said(1000, 0));
        credit.send(600);
        credit.hear(&said(500, 0));
        assert_eq!(credit.sendable(), 0);
        credit.hear(&said(500, 300));
        assert_eq!(credit.sendable(), 200);
    }

    #[test]
    fn more_than_the_window_is_not_accepted() {
        let mut credit = Credit::new(100);
        assert!(credit.accept(60));
        assert!(!credit.accept(41));
        assert!(credit.accept(40));
        credit.forward(1);
        assert!(credit.accept(1));
        assert!(!credit.accept(1));
    }

    proptest! {
        /// Two sides that keep to it never overrun each other and never both wait,
        /// wherever their counters stand.
        #[test]
        fn counters_wrap_and_nobody_starves(
            start in any::<u32>(),
            window in 1_u32..5000,
            steps in proptest::collection::vec((any::<bool>(), 1_u32..3000), 1..300),
        ) {
            let mut sender = Credit::starting_at(1, start);
            let mut receiver = Credit::starting_at(window, start);
            let mut header = Header::default();
            receiver.tell(&mut header);
            sender.hear(&header);
            let mut unread = 0;
            for (sends, bytes) in steps {
                if sends {
                    let bytes = bytes.min(sender.sendable());
                    sender.send(bytes);
                    prop_assert!(receiver.accept(bytes));
                    unread += bytes;
                } else {
                    let bytes = bytes.min(unread);
                    receiver.forward(bytes);
                    unread -= bytes;
                    if receiver.is_update_due() {
                        receiver.tell(&mut header);
                        sender.hear(&header);
                    }
                }
                prop_assert!(unread <= window);
                // Who has read all there is has left the sender some credit.
                prop_assert!(unread > 0 || sender.sendable() > 0);
            }
        }
    }
}
