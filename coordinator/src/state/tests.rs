use proptest::prelude::*;
use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::{Identity, Principal};
use understudy_common::spec::{CoordinatorLoss, RawServiceSpec};
use understudy_common::units::BasisPoints;
use understudy_common::wire::{FinalCut, Inventory, Refusal, Role};

use super::{
    Cause, Change, Command, Coordinators, EventKind, GrantReason, Hold, MoveReason, Outcome, State,
    TOKENS_MAX, WHY_BYTES_MAX, orders_for,
};

const KV: ServiceId = ServiceId(1);

fn register(host: u32, boot: u128) -> Change {
    Change::RegisterHost {
        host: HostId(host),
        name: format!("h{host}"),
        boot,
        addr: ([10, 0, 0, host as u8], 7401).into(),
        version: "1".to_owned(),
        inventory: Inventory::default(),
        domain: Domain::default(),
    }
}

fn declare() -> Change {
    let toml = r#"
        name = "kv"
        paths = ["/srv/kv"]
        address = "10.0.9.1/24"
        interface = "eth0"
        hosts = [1, 2, 3]
        workload = { start = ["/bin/kv"], health = { tcp = "127.0.0.1:1" } }
    "#;
    let raw: RawServiceSpec = toml::from_str(toml).expect("a declaration");
    Change::ApplyService(raw.try_into().expect("a valid one"))
}

fn grant(epoch: u64, holder: u32, reason: GrantReason) -> Change {
    Change::Grant {
        service: KV,
        epoch: Epoch(epoch),
        holder: HostId(holder),
        boot: 1,
        from: None,
        reason,
    }
}

fn apply(state: &mut State, change: Change) -> Outcome {
    let index = state.index + 1;
    state.apply(index, &Command::new(7, change).encode())
}

/// Three hosts, one service that host 1 serves in epoch 1, host 2 in the promotable set.
fn served() -> State {
    let mut state = State::default();
    let service = KV;
    let (epoch, host) = (Epoch(1), HostId(2));
    for change in [
        register(1, 1),
        register(2, 1),
        register(3, 1),
        declare(),
        grant(1, 1, GrantReason::First),
        Change::Served { service, epoch },
        Change::AddShadow { service, host },
        Change::ShadowReady { service, epoch, host },
    ] {
        assert_eq!(apply(&mut state, change), Outcome::Applied);
    }
    state
}

fn role_of(state: &State, host: u32) -> Option<Role> {
    orders_for(state, HostId(host)).pop().map(|order| order.role)
}

#[test]
fn the_old_holder_keeps_its_last_order_until_its_successor_serves() {
    let mut state = served();
    let (service, epoch) = (KV, Epoch(1));
    let cut = FinalCut {
        epoch,
        generation: GenerationId { epoch, n: 9 },
        acked_by: vec![HostId(2)],
    };
    for change in [
        Change::BeginHandover {
            service,
            epoch,
            to: HostId(2),
            reason: MoveReason::Operator,
        },
        Change::HolderFenced { service, epoch },
        Change::FinalCut { service, epoch, cut },
    ] {
        assert_eq!(apply(&mut state, change), Outcome::Applied);
        assert!(matches!(role_of(&state, 1), Some(Role::Release { .. })));
    }
    assert_eq!(
        apply(&mut state, grant(2, 2, GrantReason::Handover)),
        Outcome::Applied
    );
    assert_eq!(
        role_of(&state, 1),
        None,
        "fenced, it ships on and keeps the address"
    );
    assert!(matches!(role_of(&state, 2), Some(Role::Serve { .. })));
    let epoch = Epoch(2);
    assert_eq!(
        apply(&mut state, Change::Served { service, epoch }),
        Outcome::Applied
    );
    assert_eq!(role_of(&state, 1), Some(Role::Idle));
    assert!(state.hosts[&HostId(1)].safe_mode);
}

#[test]
fn a_takeover_says_what_it_may_have_lost() {
    let mut state = served();
    let from = GenerationId {
        epoch: Epoch(1),
        n: 3,
    };
    let change = Change::Grant {
        service: KV,
        epoch: Epoch(2),
        holder: HostId(2),
        boot: 1,
        from: Some(from),
        reason: GrantReason::LeaseEnded,
    };
    assert_eq!(apply(&mut state, change), Outcome::Applied);
    let granted = state
        .events
        .after(0)
        .filter(|event| event.kind == EventKind::Granted)
        .last();
    let text = &granted.expect("an event").text;
    assert!(
        text.contains(&from.to_string()) && text.contains("is lost"),
        "{text}"
    );
}

#[test]
fn only_the_next_epoch_is_granted() {
    for epoch in [0, 1, 3, u64::MAX] {
        let mut state = served();
        let outcome = apply(&mut state, grant(epoch, 2, GrantReason::LeaseEnded));
        assert!(matches!(outcome, Outcome::Refused(_)), "{epoch}");
        assert_eq!(state.services[&KV].epoch, Epoch(1));
    }
    let mut state = served();
    assert_eq!(
        apply(&mut state, grant(2, 2, GrantReason::LeaseEnded)),
        Outcome::Applied
    );
}

#[test]
fn a_note_is_one_line_of_at_most_256_bytes() {
    let mut state = State::default();
    let longest = "ä".repeat(128);
    for (text, fits) in [("disk of db2 replaced", true), (&longest, true), ("", false)] {
        let outcome = apply(
            &mut state,
            Change::Note {
                text: text.to_owned(),
            },
        );
        assert_eq!(outcome == Outcome::Applied, fits, "{text}");
    }
    for text in [
        format!("{longest}."),
        "two\nlines".to_owned(),
        "\u{1b}[2J".to_owned(),
    ] {
        assert!(matches!(
            apply(&mut state, Change::Note { text }),
            Outcome::Refused(_)
        ));
    }
    let texts: Vec<_> = state.events.after(0).map(|event| event.text.as_str()).collect();
    assert_eq!(texts, ["disk of db2 replaced", &longest]);
}

#[test]
fn no_host_outside_the_promotable_set_is_promoted() {
    let mut state = served();
    let outcome = apply(&mut state, grant(2, 3, GrantReason::LeaseEnded));
    assert!(matches!(outcome, Outcome::Refused(_)));
}

#[test]
fn a_rebooted_shadow_leaves_the_promotable_set_and_a_rebooted_holder_serves_nobody() {
    let mut state = served();
    apply(&mut state, register(2, 9));
    assert!(state.services[&KV].shadows.is_empty());
    apply(&mut state, register(1, 9));
    assert_eq!(orders_for(&state, HostId(1))[0].role, Role::Idle);
}

#[test]
fn an_order_is_for_the_boot_that_the_state_knows_and_another_boot_does_not_obey() {
    let mut state = served();
    let before = orders_for(&state, HostId(1)).remove(0);
    assert!(matches!(before.role, Role::Serve { .. }));
    assert_eq!(before.check_boot(1), Ok(()));
    assert!(matches!(before.check_boot(9), Err(Refusal::Invalid(_))));
    apply(&mut state, register(1, 9));
    let after = orders_for(&state, HostId(1)).remove(0);
    assert_eq!(after.check_boot(9), Ok(()));
    assert!(matches!(after.check_boot(1), Err(Refusal::Invalid(_))));
}

#[test]
fn a_new_order_has_a_higher_revision() {
    let mut state = served();
    let before = orders_for(&state, HostId(2))[0].revision;
    apply(&mut state, grant(2, 2, GrantReason::LeaseEnded));
    let order = &orders_for(&state, HostId(2))[0];
    assert!(order.revision > before && matches!(order.role, Role::Serve { .. }));
}

fn last_event(state: &State) -> &str {
    state
        .events
        .after(0)
        .last()
        .map(|event| event.text.as_str())
        .expect("an event")
}

#[test]
fn the_reason_of_a_command_ends_in_its_first_event() {
    let mut state = served();
    let (service, host) = (KV, HostId(2));
    let unready = Command::new(7, Change::ShadowUnready { service, host }).because("it said so");
    state.apply(state.index + 1, &unready.encode());
    assert_eq!(
        last_event(&state),
        "kv: h2 is not ready to take over, because it said so"
    );
}

#[test]
fn a_reason_is_bounded_whoever_wrote_it() {
    let mut state = served();
    let endless = Command {
        why: "ä".repeat(WHY_BYTES_MAX),
        ..Command::new(7, Change::Pause { on: true })
    };
    state.apply(state.index + 1, &endless.encode());
    assert!(last_event(&state).len() <= WHY_BYTES_MAX + 100);
}

#[test]
fn what_is_held_back_is_an_event_when_it_begins_and_not_again_until_it_is_over() {
    let mut state = served();
    let hold = Hold {
        service: Some(KV),
        cause: Cause::NoTarget,
    };
    let told = |state: &State| {
        let events = state.events.after(0);
        events.filter(|event| event.kind == EventKind::HeldBack).count()
    };
    for (on, expected) in [(true, 1), (true, 1), (false, 1), (false, 1), (true, 2)] {
        assert_eq!(apply(&mut state, Change::Held { hold, on }), Outcome::Applied);
        assert_eq!(told(&state), expected);
    }
    let nobody = Hold {
        service: Some(ServiceId(9)),
        ..hold
    };
    let outcome = apply(
        &mut state,
        Change::Held {
            hold: nobody,
            on: true,
        },
    );
    assert!(matches!(outcome, Outcome::Refused(_)));
}

#[test]
fn a_predicted_move_is_refused_while_paused_and_within_its_window_and_an_ordered_one_is_not() {
    let begin = |reason| Change::BeginHandover {
        service: KV,
        epoch: Epoch(1),
        to: HostId(2),
        reason,
    };
    let predicted = begin(MoveReason::Predicted {
        risk: BasisPoints(9_000),
    });
    let mut paused = served();
    apply(&mut paused, Change::Pause { on: true });
    assert!(matches!(
        apply(&mut paused, predicted.clone()),
        Outcome::Refused(_)
    ));
    assert_eq!(apply(&mut paused, begin(MoveReason::Operator)), Outcome::Applied);
    let mut moved = served();
    // `apply` says 7 ms.
    for (last, allowed) in [(Some(7), false), (Some(8), false), (None, true)] {
        moved.services.get_mut(&KV).expect("the service").predicted_at_ms = last;
        let outcome = apply(&mut moved, predicted.clone());
        assert_eq!(outcome == Outcome::Applied, allowed, "{last:?}: {outcome:?}");
    }
}

/// In bytes.
const COMMAND_SIZE: usize = 208;

/// An archive is read from its end, so one of another size is not read at all.
#[test]
fn commands_keep_the_size_that_other_versions_read() {
    let size = size_of::<rkyv::Archived<Command>>();
    assert_eq!(
        size, COMMAND_SIZE,
        "a replica of another version could not read these commands: box what was added to `Change` (until a version is released, the number here may change instead)"
    );
}

#[test]
fn a_snapshot_of_another_version_is_refused_in_plain_words() {
    let mut bytes = served().to_snapshot();
    bytes[12] += 1;
    let error = State::from_snapshot(&bytes).unwrap_err().to_string();
    assert!(
        error.contains("it has version 2, and this program reads version 1"),
        "{error}"
    );
    for bytes in [&bytes[..14], b"", &[7; 64]] {
        let error = State::from_snapshot(bytes).unwrap_err().to_string();
        assert!(error.contains("does not begin like one"), "{error}");
    }
}

proptest! {
    #[test]
    fn garbage_changes_nothing_and_is_counted(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assume!(Command::decode(&bytes).is_err());
        let mut state = served();
        let before = state.clone();
        prop_assert_eq!(state.apply(before.index + 1, &bytes), Outcome::Garbage);
        prop_assert_eq!(state.garbage, before.garbage + 1);
        state.garbage = before.garbage;
        state.index = before.index;
        prop_assert_eq!(state, before);
    }

    #[test]
    fn a_snapshot_continues_like_the_log(risks in prop::collection::vec((1_u32..4, 0_u16..10_000), 0..20)) {
        let mut replayed = served();
        let mut restored = State::from_snapshot(&replayed.to_snapshot()).expect("a snapshot");
        for (host, risk) in risks {
            let change = Change::Risks(vec![(HostId(host), BasisPoints(risk))]);
            apply(&mut replayed, change.clone());
            apply(&mut restored, change);
        }
        prop_assert_eq!(replayed.digest(), restored.digest());
        prop_assert_eq!(replayed, restored);
    }
}

#[test]
fn the_first_serving_tells_the_holder_that_its_shadows_bound_who_is_promoted() {
    let mut state = State::default();
    for change in [
        register(1, 1),
        register(2, 1),
        declare(),
        grant(1, 1, GrantReason::First),
    ] {
        assert_eq!(apply(&mut state, change), Outcome::Applied);
    }
    let before = orders_for(&state, HostId(1)).remove(0);
    assert!(!before.bounding);
    let (service, epoch) = (KV, Epoch(1));
    apply(&mut state, Change::Served { service, epoch });
    let after = orders_for(&state, HostId(1)).remove(0);
    assert!(after.bounding && after.revision > before.revision);
}

#[test]
fn every_promotable_host_is_in_the_holders_order() {
    let mut state = served();
    for change in [
        Change::SafeMode {
            host: HostId(2),
            on: true,
        },
        Change::SafeMode {
            host: HostId(2),
            on: false,
        },
        Change::AddShadow {
            service: KV,
            host: HostId(2),
        },
        Change::AddShadow {
            service: KV,
            host: HostId(3),
        },
        Change::ShadowReady {
            service: KV,
            epoch: Epoch(1),
            host: HostId(3),
        },
        register(3, 9),
        grant(2, 1, GrantReason::LeaseEnded),
    ] {
        apply(&mut state, change);
        let Role::Serve { shadows, .. } = orders_for(&state, HostId(1)).remove(0).role else {
            panic!("it holds")
        };
        let named: Vec<_> = shadows.iter().map(|peer| peer.host).collect();
        assert!(
            state.services[&KV]
                .promotable()
                .iter()
                .all(|host| named.contains(host))
        );
    }
}

#[test]
fn a_holder_that_is_called_dead_is_told_to_serve_nobody_and_silence_counts_again() {
    let mut state = served();
    let service = state.services.get_mut(&KV).expect("the service");
    service.spec.policy.coordinator_loss = CoordinatorLoss::Serve;
    assert!(!state.services[&KV].silence_ends(&state));
    let dead = |boot| Change::ConfirmDead {
        host: HostId(1),
        boot,
    };
    assert!(
        matches!(apply(&mut state, dead(7)), Outcome::Refused(_)),
        "another boot"
    );
    assert_eq!(apply(&mut state, dead(1)), Outcome::Applied);
    assert!(state.services[&KV].silence_ends(&state));
    assert_eq!(orders_for(&state, HostId(1))[0].role, Role::Idle);
    apply(&mut state, grant(2, 2, GrantReason::LeaseEnded));
    assert!(
        !state.services[&KV].silence_ends(&state),
        "the next holder is another"
    );
}

const HASH: [u8; 32] = [7; 32];
const REQUEST: [u8; 32] = [8; 32];

fn token(name: Option<&str>, expires_at_ms: u64) -> Change {
    Change::IssueToken {
        hash: HASH,
        name: name.map(str::to_owned),
        expires_at_ms,
    }
}

fn admit(host: u32, name: &str) -> Change {
    Change::Admit {
        token: HASH,
        request: REQUEST,
        host: HostId(host),
        name: name.to_owned(),
    }
}

fn refusal(state: &mut State, change: Change) -> String {
    match apply(state, change) {
        Outcome::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_admits_one_host_once_and_says_why_not() {
    let mut state = served();
    assert!(refusal(&mut state, admit(4, "h4")).contains("does not know this token"));
    assert_eq!(apply(&mut state, token(None, 1_000)), Outcome::Applied);
    assert!(refusal(&mut state, admit(4, "h1")).contains("called h1 already"));
    assert!(refusal(&mut state, admit(4, "no name")).contains("lower-case"));
    // A number that another host had is never given again.
    assert!(refusal(&mut state, admit(3, "h4")).contains("in the meantime"));
    assert_eq!(apply(&mut state, admit(4, "h4")), Outcome::Applied);
    assert_eq!(
        state
            .admission
            .admitted(&HASH, &REQUEST)
            .map(|used| used.enrolment),
        Some(1)
    );
    assert!(refusal(&mut state, admit(5, "h5")).contains("used before, by host-4"));
    assert!(refusal(&mut state, Change::RevokeToken { number: 1 }).contains("was used by"));
}

#[test]
fn an_expired_a_revoked_and_a_named_token_are_told_apart() {
    // Commands of these tests are proposed at 7 ms.
    let mut state = served();
    apply(&mut state, token(None, 7));
    assert!(refusal(&mut state, admit(4, "h4")).contains("expired"));
    let mut state = served();
    apply(&mut state, token(None, 1_000));
    apply(&mut state, Change::RevokeToken { number: 1 });
    assert!(refusal(&mut state, admit(4, "h4")).contains("revoked"));
    let mut state = served();
    apply(&mut state, token(Some("h9"), 1_000));
    assert!(refusal(&mut state, admit(4, "h4")).contains("for a host called h9"));
}

#[test]
fn a_known_host_that_joins_anew_shuts_out_its_certificates_so_far() {
    let mut state = served();
    apply(&mut state, token(Some("h3"), 1_000));
    assert_eq!(apply(&mut state, admit(3, "h3")), Outcome::Applied);
    let of = |enrolment| Identity {
        principal: Principal::Host(HostId(3)),
        enrolment,
    };
    assert!(state.admission.revocations.refuses(of(1)));
    assert!(!state.admission.revocations.refuses(of(2)));
    assert_eq!(
        state
            .admission
            .admitted(&HASH, &REQUEST)
            .map(|used| used.enrolment),
        Some(2)
    );
}

#[test]
fn tokens_are_bounded_and_spent_ones_make_room() {
    let mut state = State::default();
    let issue = |n: u8, expires_at_ms| Change::IssueToken {
        hash: [n; 32],
        name: None,
        expires_at_ms,
    };
    for n in 0..TOKENS_MAX as u8 {
        assert_eq!(apply(&mut state, issue(n, 1_000)), Outcome::Applied);
    }
    assert!(refusal(&mut state, issue(200, 1_000)).contains("tokens are open"));
    apply(&mut state, Change::RevokeToken { number: 5 });
    assert_eq!(apply(&mut state, issue(200, 1_000)), Outcome::Applied);
    assert!(!state.admission.tokens.contains_key(&5));
}

#[test]
fn a_host_that_holds_or_is_the_last_shadow_is_not_removed() {
    let remove = |host, force| Change::RemoveHost {
        host: HostId(host),
        force,
    };
    let mut state = served();
    for force in [false, true] {
        assert!(refusal(&mut state, remove(1, force)).contains("holds kv"));
    }
    assert!(refusal(&mut state, remove(2, false)).contains("last shadow of kv"));
    let before = state.services[&KV].revision;
    assert_eq!(apply(&mut state, remove(2, true)), Outcome::Applied);
    assert!(!state.services[&KV].is_shadow(HostId(2)) && state.services[&KV].revision > before);
    // It is refused for good, whatever certificate it shows.
    let newest = Identity {
        principal: Principal::Host(HostId(2)),
        enrolment: 1_000,
    };
    assert!(state.admission.revocations.refuses(newest));
    assert!(refusal(&mut state, register(2, 1)).contains("was removed"));
    assert_eq!(apply(&mut state, remove(3, false)), Outcome::Applied);
}

#[test]
fn a_coordinator_is_removed_before_it_is_revoked() {
    let mut state = State::default();
    let two = CoordinatorId(2);
    state.coordinators = Coordinators::first([(CoordinatorId(1), None), (two, None)], 0);
    let revoke = Change::Revoke {
        who: Principal::Coordinator(two),
    };
    assert!(refusal(&mut state, revoke.clone()).contains("remove it first"));
    state.coordinators.members.remove(&two);
    assert_eq!(apply(&mut state, revoke), Outcome::Applied);
}

/// Two machines under one number would be taken for two boots of one.
#[test]
fn nobody_takes_the_place_of_a_host_that_holds_a_service() {
    let mut state = served();
    apply(&mut state, token(Some("h1"), 1_000));
    assert!(refusal(&mut state, admit(1, "h1")).contains("h1 holds kv"));
}
