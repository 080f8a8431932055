// SPDX-License-Identifier: LGPL-2.1-or-later
//! Guarantees of publisher and subscribers, for each kind of memory. All of them are in one process, each
//! subscriber in a thread of its own.

mod announcements;
mod backpressure;
mod delivery;
mod fixture;
mod formats;
mod joining;
mod lifetime;
mod packets;
mod timeouts;
mod wakeups;

macro_rules! conformance {
    ($memory:ident, $fixture:ident $(, $ignore:meta)?) => {
        mod $memory {
            conformance! { @tests $memory, $fixture, ($(#[$ignore])?):
                delivery::newest_subscribers_with_policy_drop
                delivery::newest_subscribers_with_policy_wait
                delivery::strict_subscribers_with_policy_drop
                delivery::strict_subscribers_with_policy_wait
                delivery::strict_subscribers_lose_nothing_at_full_speed
                delivery::last_frame_arrives_before_publisher_closes
                delivery::frames_arrive_in_order_of_publication
                delivery::stream_continues_after_its_end
                delivery::frames_become_complete_in_any_order
                delivery::only_frame_arrives_before_publisher_closes
                delivery::next_frame_takes_end_back
                backpressure::pool_uses_spare_slots_for_lagging_subscriber
                backpressure::slow_subscriber_does_not_disturb_others
                backpressure::exhausted_credit_does_not_starve_others
                backpressure::stalled_subscriber_is_evicted
                backpressure::waiting_publisher_evicts_after_timeout
                backpressure::waiting_publisher_continues_when_subscriber_leaves
                backpressure::only_waiting_publisher_is_woken
                backpressure::publisher_does_not_wait_for_held_frame_of_leaver
                backpressure::subscribers_within_credit_cost_no_frame
                backpressure::leaving_subscriber_costs_others_no_frame
                lifetime::frames_outlive_publisher
                lifetime::frames_outlive_subscriber
                lifetime::frame_released_by_device_is_held_until_then
                lifetime::waiting_subscriber_notices_release_by_device
                lifetime::frame_does_not_count_when_its_slot_is_claimed_again
                lifetime::frame_is_released_when_device_refuses
                lifetime::pool_follows_credit
                lifetime::dropped_loan_is_free_again
                lifetime::slot_that_upstream_keeps_is_not_reused
                formats::frames_keep_format
                formats::frames_keep_format_for_late_subscriber
                formats::rejected_caps_change_nothing
                formats::size_changes_before_old_frames_are_taken
                formats::loans_have_size_of_format
                joining::join_is_refused_when_full
                joining::join_is_refused_over_credit
                joining::key_has_one_publisher
                joining::publisher_restarts
                joining::subscriber_waits_for_publisher
                joining::connect_times_out_without_publisher
                joining::interrupt_ends_every_wait
                joining::late_strict_subscriber_gets_new_frames_only
                timeouts::longest_timeouts_never_elapse
            }
        }
    };
    (@tests $memory:ident, $fixture:ident, $ignore:tt: $($module:ident::$test:ident)*) => { $(
        conformance! { @test $memory, $fixture, $ignore, $module, $test }
    )* };
    (@test $memory:ident, $fixture:ident, ($($ignore:tt)*), $module:ident, $test:ident) => {
        #[test]
        $($ignore)*
        fn $test() {
            use crate::fixture::{self, MemoryFixture};
            let name = concat!(stringify!($memory), "-", stringify!($test));
            let mut test = testing::TestDir::new(name);
            test.importer = <fixture::$fixture as MemoryFixture>::importer();
            crate::$module::$test::<fixture::$fixture>(&test);
        }
    };
}

conformance!(host, Host);
conformance!(cuda, Cuda, ignore = "needs an NVIDIA GPU");
