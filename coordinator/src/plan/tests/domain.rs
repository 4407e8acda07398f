//! Where shadows may stand.

use super::*;

#[test]
fn a_label_that_is_missing_shares_nothing() {
    check(
        &World::steady().racks(["r1", "", ""]).no_shadow(2),
        expect![[r#"
        would:
          kv: make b a shadow, because b is alive and keeps no copy
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_host_in_the_primarys_rack_is_passed_over_for_one_that_stands_apart() {
    let world = World::steady().no_shadow(2).no_shadow(3);
    check(
        &world.racks(["r1", "r1", "r2"]),
        expect![[r#"
        would:
          kv: make c a shadow, because c is alive and keeps no copy
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_service_whose_hosts_all_share_a_domain_has_no_shadow_and_says_so() {
    let alone = World::steady()
        .no_shadow(2)
        .no_shadow(3)
        .racks(["r1", "r1", "r1"]);
    check(
        &alone,
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (failure domain): it has no shadow: b shares rack r1; c shares rack r1 with its primary a; name a host that stands apart among its hosts, or set [policy] domains = "any"
    "#]],
    );
    check(
        &alone.anywhere(),
        expect![[r#"
        would:
          kv: make b a shadow, because b is alive and keeps no copy
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_copy_in_the_primarys_rack_ends_once_one_that_stands_apart_is_ready() {
    let crowded = World::steady().racks(["r1", "r1", "r2"]);
    check(
        &crowded,
        expect![[r#"
        would:
          kv: end the copy on b, because b shares rack r1 with its primary a, and c stands apart and is ready
        would not:
          nothing
    "#]],
    );
    check(
        &crowded.clone().copy(3, CopyState::Warming).unready(3),
        expect![[r#"
            would:
              nothing
            would not:
              kv: held back (failure domain): b shares rack r1 with its primary a, but no shadow that stands apart is ready yet: the copy is kept until then
        "#]],
    );
    check(
        &crowded.clone().silent(3),
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (failure domain): b shares rack r1 with its primary a, but no shadow that stands apart is ready yet: the copy is kept until then
    "#]],
    );
    check(
        &crowded.anywhere(),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
}
