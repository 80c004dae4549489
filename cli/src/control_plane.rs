//! Controllers and scheduler beside the API server of this process, with clients that need no socket. In: the API
//! server. Out: supervised components.

use crate::paths::Paths;
use crate::tasks::Tasks;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_CONTROLLER_MANAGER, USER_SCHEDULER, UserInfo};
use causeway_apiserver::ApiServer;
use causeway_controllers::ControllersConfig;
use causeway_scheduler::SchedulerConfig;
use std::sync::Arc;

/// Starts them.
pub fn start(api: &Arc<ApiServer>, cluster: &ClusterConfig, paths: &Paths, control: &mut Tasks) {
    let volumes = paths.data.join("volumes");
    let controllers = ControllersConfig::new(cluster.clone(), api.pki().ca_pem().to_owned(), volumes);
    control.supervise("controllers", {
        let (api, token) = (api.clone(), control.token());
        move || {
            let client = api.client(UserInfo::component(USER_CONTROLLER_MANAGER, &[]));
            causeway_controllers::run(client, controllers.clone(), token.clone())
        }
    });
    control.supervise("scheduler", {
        let (api, token) = (api.clone(), control.token());
        move || {
            let client = api.client(UserInfo::component(USER_SCHEDULER, &[]));
            causeway_scheduler::run(client, SchedulerConfig::default(), token.clone())
        }
    });
}
