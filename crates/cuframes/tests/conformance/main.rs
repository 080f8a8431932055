// SPDX-License-Identifier: LGPL-2.1-or-later
//! What publisher and subscribers promise, for each kind of memory. The threads of one process each have a
//! subscriber of their own.

mod backpressure;
mod delivery;
mod fixture;
mod formats;
mod joining;
mod lifetime;
mod packets;

macro_rules! conformance {
    ($memory:ident, $fixture:ident $(, $ignore:meta)?) => {
        mod $memory {
            conformance! { @tests $memory, $fixture, ($(#[$ignore])?):
                delivery::newest_drop
                delivery::newest_wait
                delivery::strict_drop
                delivery::strict_wait
                delivery::nothing_is_lost_at_full_speed
                delivery::the_last_frame_is_not_lost
                delivery::frames_are_in_the_order_of_publication
                delivery::the_stream_goes_on_behind_its_end
                backpressure::slots_are_used_when_they_are_needed
                backpressure::a_slow_subscriber_disturbs_nobody
                backpressure::a_held_credit_starves_nobody
                backpressure::a_stalled_subscriber_is_sent_away
                backpressure::a_publisher_that_waits_goes_on_in_the_end
                backpressure::a_publisher_that_waits_goes_on_when_a_subscriber_leaves
                backpressure::nobody_within_its_credit_costs_a_frame
                backpressure::who_leaves_takes_no_frames_along
                lifetime::frames_outlive_the_publisher
                lifetime::frames_outlive_their_subscriber
                lifetime::a_frame_given_back_by_a_device_is_held_until_then
                lifetime::a_reader_that_waits_learns_what_a_device_gives_back
                lifetime::the_pool_follows_the_credit
                lifetime::a_loan_that_is_dropped_is_free_again
                formats::frames_keep_their_format
                formats::frames_keep_their_format_for_who_comes_later
                formats::sizes_change_before_the_old_frames_are_taken
                formats::loans_have_the_size_of_the_format
                joining::all_places_taken
                joining::too_much_credit
                joining::a_key_has_one_publisher
                joining::a_publisher_comes_again
                joining::the_subscriber_comes_first
                joining::no_publisher_comes
                joining::an_interrupt_ends_every_wait
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
