//! Stories: what happens at which second, and what the keeper does about it.

use Action::{Adopt, FallBack, Kill, Nothing, Refuse, Signal as Pass, Start, Wait};
use Event::{Ended, Hangs, Heartbeat, Ready, Restart, Stop, Stopping, Tick};
use Program::{Candidate, Proven};
use nix::sys::signal::Signal::{SIGINT, SIGKILL, SIGSEGV, SIGTERM, SIGUSR1};

use super::*;

const CRASH: Event = Ended(End::Killed(SIGSEGV));
const GONE: Event = Ended(End::Killed(SIGKILL));

fn limits() -> Settings {
    Settings {
        start_limit: Duration::from_secs(60),
        hand_over_limit: Duration::from_secs(20),
        watchdog: Duration::from_secs(30),
        trial: Duration::from_secs(50),
        descriptors_max: 8,
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Plays `story`: at a second, an event, and the action that has to come of it.
fn play(story: &[(u64, Event, Action)]) -> Lifecycle {
    let start = Instant::now();
    let mut lifecycle = Lifecycle::first(limits(), start);
    for (number, (second, event, action)) in story.iter().enumerate() {
        let now = start + Duration::from_secs(*second);
        let done = lifecycle.on(*event, now);
        assert_eq!(done, *action, "step {number}, second {second}: {event:?}");
    }
    lifecycle
}

/// The second at which the next tick is due, counted from the story's second 0.
fn due(lifecycle: &Lifecycle, since: Instant) -> Option<u64> {
    lifecycle
        .deadline()
        .map(|deadline| deadline.duration_since(since).as_secs())
}

#[test]
fn a_first_worker_that_fails_ends_the_keeper_with_its_status() {
    play(&[(1, Ended(End::Exited(2)), Action::End(2))]);
    play(&[(1, Ended(End::Exited(0)), Action::End(0))]);
    play(&[(1, CRASH, Action::End(139))]);
}

#[test]
fn a_first_worker_that_is_silent_for_too_long_ends_the_keeper() {
    play(&[
        (59, Tick, Nothing),
        (60, Tick, Kill("it was not ready in time")),
        (60, Tick, Nothing),
        (61, GONE, Action::End(137)),
    ]);
}

#[test]
fn a_worker_that_was_ready_is_replaced_however_it_ends() {
    for end in [CRASH, Ended(End::Exited(0)), Ended(End::Exited(1))] {
        play(&[
            (1, Ready, Nothing),
            (2, end, Wait(ms(0))),
            (3, Tick, Start(Proven)),
            (4, Ready, Nothing),
        ]);
    }
}

#[test]
fn a_worker_that_says_so_ends_the_keeper_by_its_own_end() {
    for status in [0, 3] {
        play(&[
            (1, Ready, Nothing),
            (2, Stopping, Nothing),
            (3, Ended(End::Exited(status)), Action::End(status)),
        ]);
    }
    // Killed on its way, it has left something.
    play(&[
        (1, Ready, Nothing),
        (2, Stopping, Nothing),
        (3, CRASH, Wait(ms(0))),
    ]);
}

#[test]
fn a_crash_loop_backs_off_until_a_worker_was_healthy_for_a_while() {
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (2, Tick, Start(Proven)),
        (2, CRASH, Wait(ms(200))),
        (3, Tick, Start(Proven)),
        (3, Ready, Nothing),
        (4, CRASH, Wait(ms(200))),
        (5, Tick, Start(Proven)),
        (5, Ready, Nothing),
        (30, Heartbeat, Nothing),
        (55, CRASH, Wait(ms(0))),
    ]);
}

#[test]
fn a_silent_worker_is_killed_and_replaced_once_it_is_gone() {
    play(&[
        (0, Ready, Nothing),
        (20, Heartbeat, Nothing),
        (49, Tick, Nothing),
        (50, Tick, Kill("no heartbeat")),
        (55, Tick, Nothing),
        (60, Heartbeat, Nothing),
        (70, GONE, Wait(ms(0))),
        (71, Tick, Start(Proven)),
    ]);
    play(&[
        (0, Ready, Nothing),
        (1, Hangs, Kill("it says that it hangs")),
        (1, Hangs, Nothing),
    ]);
}

#[test]
fn a_host_that_stood_still_is_no_fault_of_the_worker() {
    play(&[
        (0, Ready, Nothing),
        (1000, Tick, Nothing),
        (1029, Tick, Nothing),
        (1030, Tick, Kill("no heartbeat")),
    ]);
}

#[test]
fn a_start_after_a_crash_takes_as_long_as_it_shows_signs_of_life() {
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (2, Tick, Start(Proven)),
        (50, Heartbeat, Nothing),
        (70, Heartbeat, Nothing),
        (99, Tick, Nothing),
        (100, Tick, Kill("it was not ready in time")),
        (101, GONE, Wait(ms(200))),
    ]);
}

#[test]
fn signals_go_on_to_the_worker_each_time_and_its_end_is_ours() {
    for end in [0, 3] {
        play(&[
            (0, Ready, Nothing),
            (1, Stop(SIGTERM), Pass(SIGTERM)),
            (2, Stop(SIGINT), Pass(SIGINT)),
            (3, Ended(End::Exited(end)), Action::End(end)),
        ]);
    }
    play(&[
        (0, Stop(SIGINT), Pass(SIGINT)),
        (1, Ended(End::Killed(SIGINT)), Action::End(130)),
    ]);
}

#[test]
fn a_worker_that_hangs_while_it_drains_is_killed_and_the_keeper_ends() {
    play(&[
        (0, Ready, Nothing),
        (1, Stop(SIGTERM), Pass(SIGTERM)),
        (20, Heartbeat, Nothing),
        (50, Tick, Kill("no heartbeat")),
        (51, GONE, Action::End(137)),
    ]);
}

#[test]
fn a_request_to_stop_between_two_workers_waits_for_the_one_that_drains() {
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (1, Stop(SIGTERM), Nothing),
        (2, Tick, Start(Proven)),
        (3, Ready, Pass(SIGTERM)),
        (4, Ended(End::Exited(0)), Action::End(0)),
    ]);
    // A second request does not wait.
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (1, Stop(SIGTERM), Nothing),
        (1, Stop(SIGTERM), Action::End(143)),
    ]);
    // Nobody gets ready.
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (1, Stop(SIGTERM), Nothing),
        (2, Tick, Start(Proven)),
        (3, Ended(End::Exited(1)), Action::End(1)),
    ]);
}

#[test]
fn a_planned_restart_starts_the_candidate_and_adopts_it_after_its_trial() {
    let lifecycle = play(&[
        (0, Ready, Nothing),
        (1, Restart, Pass(SIGUSR1)),
        (1, Restart, Refuse("another restart is under way")),
        (2, Stopping, Nothing),
        (3, Ended(End::Exited(0)), Start(Candidate)),
        (4, Ready, Nothing),
        (30, Heartbeat, Nothing),
        (53, Tick, Nothing),
        (54, Tick, Adopt),
        (54, Tick, Nothing),
    ]);
    assert!(!lifecycle.on_trial);
}

#[test]
fn a_worker_that_does_not_hand_over_in_time_is_killed_for_the_candidate() {
    play(&[
        (0, Ready, Nothing),
        (1, Restart, Pass(SIGUSR1)),
        (21, Tick, Kill("it has not handed over in time")),
        (22, GONE, Start(Candidate)),
    ]);
}

#[test]
fn a_candidate_that_fails_gives_way_to_the_proven_executable() {
    let restart = [
        (0, Ready, Nothing),
        (1, Restart, Pass(SIGUSR1)),
        (2, Ended(End::Exited(0)), Start(Candidate)),
    ];
    let failures: [&[(u64, Event, Action)]; 3] = [
        // Heartbeats are no excuse here: there is an executable that is known to start.
        &[
            (40, Heartbeat, Nothing),
            (62, Tick, Kill("it was not ready in time")),
            (63, GONE, FallBack(ms(100))),
        ],
        &[(3, Ended(End::Exited(1)), FallBack(ms(100)))],
        &[(4, Ready, Nothing), (50, CRASH, FallBack(ms(0)))],
    ];
    for failure in failures {
        let mut story = restart.to_vec();
        story.extend(failure);
        let after = failure.last().unwrap().0 + 1;
        story.extend([
            (after, Tick, Start(Proven)),
            (after, Ready, Nothing),
            (after + 1, CRASH, Wait(ms(100))),
        ]);
        play(&story);
    }
}

#[test]
fn a_restart_mends_a_crash_loop_at_once() {
    play(&[
        (0, Ready, Nothing),
        (1, CRASH, Wait(ms(0))),
        (1, Restart, Start(Candidate)),
    ]);
    play(&[
        (0, Ready, Nothing),
        (30, Tick, Kill("no heartbeat")),
        (31, Restart, Nothing),
        (32, GONE, Start(Candidate)),
    ]);
}

#[test]
fn a_restart_is_refused_where_it_would_undo_an_end() {
    for end in [Stopping, Stop(SIGTERM)] {
        let start = Instant::now();
        let mut lifecycle = Lifecycle::taken_over(limits(), start);
        lifecycle.on(end, start);
        let done = lifecycle.on(Restart, start);
        assert_eq!(done, Refuse("the worker is about to end"), "{end:?}");
    }
    play(&[(0, Restart, Refuse("the first worker is not ready yet"))]);
}

#[test]
fn a_request_to_stop_during_a_restart_is_kept_for_the_next_worker() {
    play(&[
        (0, Ready, Nothing),
        (1, Restart, Pass(SIGUSR1)),
        (2, Stop(SIGTERM), Nothing),
        (3, Ended(End::Exited(0)), Start(Candidate)),
        (4, Ended(End::Exited(1)), FallBack(ms(100))),
        (5, Tick, Start(Proven)),
        (6, Ready, Pass(SIGTERM)),
        (7, Ended(End::Exited(0)), Action::End(0)),
    ]);
    play(&[
        (0, Ready, Nothing),
        (1, Restart, Pass(SIGUSR1)),
        (2, Stop(SIGTERM), Nothing),
        (2, Stop(SIGTERM), Pass(SIGTERM)),
        (3, Ended(End::Exited(0)), Action::End(0)),
    ]);
}

#[test]
fn the_next_deadline_is_the_first_thing_that_can_be_due() {
    let start = Instant::now();
    let mut lifecycle = Lifecycle::first(limits(), start);
    assert_eq!(due(&lifecycle, start), Some(60));
    lifecycle.on(Ready, start);
    assert_eq!(due(&lifecycle, start), Some(30));
    lifecycle.on(Restart, start);
    assert_eq!(due(&lifecycle, start), Some(20));
    lifecycle.on(GONE, start);
    assert_eq!(due(&lifecycle, start), Some(60));
    lifecycle.on(Ready, start);
    assert_eq!(due(&lifecycle, start), Some(30));
    lifecycle.on(Heartbeat, start + Duration::from_secs(29));
    assert_eq!(
        due(&lifecycle, start),
        Some(50),
        "the trial is over before the watchdog is"
    );
    lifecycle.on(Hangs, start);
    assert_eq!(due(&lifecycle, start), None);
}
