//! Readiness of a gateway in front of a provider: it ends while neither the provider nor the platform can be
//! reached. With one of them, a part of the requests succeeds.

use std::time::Duration;

use crate::edge::admin::Readiness;

/// Interval of the checks. Probes of readiness come every 10 s.
const INTERVAL: Duration = Duration::from_secs(5);

/// Updates `readiness`. Asks for the provider only while the platform cannot be reached. Never returns.
pub(super) async fn watch<F: Future<Output = bool>>(
    is_platform_reachable: impl Fn() -> bool,
    is_provider_reachable: impl Fn() -> F,
    readiness: Readiness,
) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let is_isolated = !is_platform_reachable() && !is_provider_reachable().await;
        if readiness.set_isolated(is_isolated) {
            if is_isolated {
                tracing::warn!("neither platform nor provider can be reached, reporting not ready");
            } else {
                tracing::info!("platform or provider can be reached again, reporting ready");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readiness_ends_only_without_platform_and_provider() {
        let readiness = Readiness::default();
        readiness.set(true);
        let (platform, provider) = (AtomicBool::new(true), AtomicBool::new(true));
        let is = |reachable: &AtomicBool| reachable.load(Ordering::Relaxed);
        let changes = async {
            for (has_platform, has_provider) in
                [(true, false), (false, true), (false, false), (true, false), (false, false), (false, true)]
            {
                platform.store(has_platform, Ordering::Relaxed);
                provider.store(has_provider, Ordering::Relaxed);
                tokio::time::sleep(2 * INTERVAL).await;
                assert_eq!(readiness.get(), has_platform || has_provider, "{has_platform} {has_provider}");
            }
            // A gateway that shuts down stays not ready.
            readiness.set(false);
            tokio::time::sleep(2 * INTERVAL).await;
            assert!(!readiness.get());
        };
        tokio::select! {
            () = watch(|| is(&platform), || std::future::ready(is(&provider)), readiness.clone()) => panic!("it returned"),
            () = changes => {}
        }
    }
}
