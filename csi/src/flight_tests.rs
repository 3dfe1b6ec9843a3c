use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn operation(name: &'static str, request: &str, holds: &[Hold]) -> Operation {
    Operation { name, request: request.as_bytes().to_vec(), holds: holds.to_vec() }
}

fn exclusive(key: &str) -> Hold {
    Hold::new(Mode::Alone, key)
}

fn shared(key: &str) -> Hold {
    Hold::new(Mode::Read, key)
}

fn volume(mode: Mode) -> Hold {
    Hold::volume(mode, &provisioners::Identity::new("v"))
}

fn flights() -> Flights {
    Flights::new(8, Duration::from_secs(60))
}

/// Starts an operation that ends when the returned `Notify` is told, and waits until it is admitted.
async fn hold_open(flights: &Flights, op: Operation) -> (Arc<Notify>, tokio::task::JoinHandle<Result<u32>>) {
    let (gate, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (f, g, b) = (flights.clone(), gate.clone(), begun.clone());
    let task = tokio::spawn(async move {
        f.run(op, |ctx| async move {
            ctx.stage("waiting at the gate");
            b.notify_one();
            g.notified().await;
            Ok(7)
        })
        .await
    });
    begun.notified().await;
    (gate, task)
}

#[tokio::test]
async fn the_same_call_joins_and_the_work_runs_once() {
    let (flights, runs) = (flights(), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (flights, runs) = (flights.clone(), runs.clone());
            tokio::spawn(async move {
                flights
                    .run(operation("CreateVolume", "a", &[exclusive("volume a")]), |_| async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 0);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_operation_is_told_who_is_running_and_at_which_stage() {
    let flights = flights();
    let (gate, first) = hold_open(&flights, operation("DeleteVolume", "a", &[exclusive("volume a")])).await;
    let second =
        flights.run(operation("CreateVolume", "a", &[exclusive("volume a")]), |_| async { Ok(()) }).await;
    let text = second.unwrap_err().to_string();
    assert!(text.contains("volume a: DeleteVolume has been running"), "{text}");
    assert!(text.contains("stage: waiting at the gate"), "{text}");
    gate.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn shared_holds_do_not_exclude_each_other_but_exclude_an_exclusive_one() {
    let flights = flights();
    let clone_1 = operation("CreateVolume", "1", &[exclusive("volume 1"), shared("volume source")]);
    let (gate, first) = hold_open(&flights, clone_1).await;
    let clone_2 = operation("CreateVolume", "2", &[exclusive("volume 2"), shared("volume source")]);
    assert!(flights.run(clone_2, |_| async { Ok(()) }).await.is_ok());
    let delete = operation("DeleteVolume", "s", &[exclusive("volume source")]);
    assert_eq!(flights.run(delete, |_| async { Ok(()) }).await.unwrap_err().label(), "busy");
    gate.notify_one();
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_work_goes_on_when_the_caller_goes_away_and_a_retry_joins_it() {
    let flights = flights();
    let op = operation("CreateVolume", "a", &[exclusive("volume a")]);
    let (gate, caller) = hold_open(&flights, op.clone()).await;
    caller.abort();
    let retry = tokio::spawn({
        let flights = flights.clone();
        async move { flights.run(op, |_| async { Ok(1_u32) }).await }
    });
    tokio::task::yield_now().await;
    gate.notify_one();
    assert_eq!(retry.await.unwrap().unwrap(), 7, "the retry got the first call's result");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_lets_go() {
    let flights = flights();
    let op = operation("CreateVolume", "a", &[exclusive("volume a")]);
    let answer = flights.run(op.clone(), |_| async { if true { panic!("boom") } else { Ok(()) } }).await;
    assert_eq!(answer.unwrap_err().label(), "internal");
    assert!(flights.run(op, |_| async { Ok(()) }).await.is_ok());
}

#[tokio::test]
async fn draining_waits_then_asks_to_end_and_counts_what_remains() {
    let flights = flights();
    let (gate, _task) = hold_open(&flights, operation("CreateVolume", "a", &[exclusive("volume a")])).await;
    assert_eq!(flights.drain(Duration::from_millis(10)).await, 1);
    gate.notify_one();
    assert_eq!(flights.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn no_more_than_the_allowed_number_work_at_once() {
    let flights = Flights::new(2, Duration::from_secs(60));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..8)
        .map(|i| {
            let (flights, now, most) = (flights.clone(), now.clone(), most.clone());
            let op = operation("CreateVolume", &i.to_string(), &[exclusive(&format!("volume {i}"))]);
            tokio::spawn(async move {
                flights
                    .run(op, |_| async move {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        now.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

/// Waits until an operation is at a stage that begins so.
async fn at_stage(flights: &Flights, name: &str, stage: &str) {
    let is_there =
        |running: &Running| running.operation.name == name && running.ctx.current_stage().starts_with(stage);
    while !flights.shared.lock().values().any(is_there) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn c12_what_frees_waits_in_line_and_a_row_of_copies_does_not_keep_it_out() {
    let flights = flights();
    let copy = |name: &str| operation("CreateSnapshot", name, &[volume(Mode::Copy)]);
    let (gate, first) = hold_open(&flights, copy("1")).await;
    let unstage = tokio::spawn({
        let flights = flights.clone();
        let op = operation("NodeUnstageVolume", "v", &[volume(Mode::Alone)]);
        async move { flights.run(op, |_| async { Ok(1) }).await }
    });
    at_stage(&flights, "NodeUnstageVolume", "waiting for CreateSnapshot of volume v").await;
    // What comes later is in its way.
    assert_eq!(flights.run(copy("2"), |_| async { Ok(()) }).await.unwrap_err().label(), "busy");
    let publish = operation("NodePublishVolume", "v", &[volume(Mode::Bind)]);
    let next = flights.run(publish, |_| async { Ok(()) }).await.unwrap_err().to_string();
    assert!(next.contains("NodeUnstageVolume has been running"), "{next}");
    gate.notify_one();
    first.await.unwrap().unwrap();
    assert_eq!(unstage.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn c12_several_that_free_go_one_after_the_other() {
    let flights = flights();
    let (gate, first) = hold_open(&flights, operation("NodeStageVolume", "v", &[exclusive("v")])).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for name in ["NodeUnstageVolume", "ControllerUnpublishVolume"] {
        let (flights, order, own) = (flights.clone(), order.clone(), flights.clone());
        waiting.push(tokio::spawn(async move {
            let work = |_| async move {
                order.lock().unwrap().push(name);
                Ok(())
            };
            flights.run(operation(name, "v", &[exclusive("v")]), work).await
        }));
        at_stage(&own, name, "waiting for NodeStageVolume").await;
    }
    gate.notify_one();
    first.await.unwrap().unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), ["NodeUnstageVolume", "ControllerUnpublishVolume"]);
}

#[tokio::test(start_paused = true)]
async fn f22_a_caller_is_answered_in_time_and_the_hold_stays_with_the_work() {
    let flights = Flights::new(8, Duration::from_secs(10));
    let (gate, hung) = hold_open(&flights, operation("NodeStageVolume", "v", &[exclusive("v")])).await;
    let error = hung.await.unwrap().unwrap_err();
    assert_eq!(error.label(), "deadline");
    assert!(error.to_string().contains("stage: waiting at the gate"), "{error}");
    let other = operation("DeleteVolume", "v", &[exclusive("v")]);
    assert_eq!(flights.run(other.clone(), |_| async { Ok(()) }).await.unwrap_err().label(), "busy");
    gate.notify_one();
    while !flights.shared.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(flights.run(other, |_| async { Ok(()) }).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn f22_what_hangs_takes_no_place_of_another_class() {
    let flights = Flights::new(2, Duration::from_secs(10));
    let mut gates = Vec::new();
    for id in ["1", "2"] {
        gates.push(hold_open(&flights, operation("NodeStageVolume", id, &[exclusive(id)])).await);
    }
    let stage = operation("NodeStageVolume", "3", &[exclusive("3")]);
    let refused = flights.run(stage, |_| async { Ok(()) }).await.unwrap_err();
    assert_eq!(refused.label(), "unavailable", "{refused}");
    for name in ["NodeUnstageVolume", "CreateVolume"] {
        flights.run(operation(name, "4", &[exclusive("4")]), |_| async { Ok(()) }).await.unwrap();
    }
}
