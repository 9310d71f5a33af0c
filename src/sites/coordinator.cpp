#include "sites/coordinator.h"

#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/text/json.h"

namespace pelago::sites {

namespace {

constexpr double kTryAgainS = 0.5;

}  // namespace

Coordinator::Coordinator(const RoundOptions& options,
                         Transport& transport,
                         StateStore& store,
                         Journal& journal,
                         const Clock& clock,
                         CoordinatorCallbacks callbacks)
    : rounds_(options, store.load()),
      transport_(&transport),
      store_(&store),
      journal_(&journal),
      clock_(&clock),
      callbacks_(std::move(callbacks)) {
  for (const auto& [site, address] : rounds_.addresses()) transport_->set_address(site, address);
}

void Coordinator::poll(double timeout_s) {
  // What has piled up is taken in one go, but never for so long that the clock is not looked at.
  constexpr int kArrivalsMax = 256;
  for (int i = 0; i < kArrivalsMax; ++i) {
    const std::optional<Arrival> arrival = transport_->receive(i == 0 ? timeout_s : 0);
    if (!arrival) break;
    take(*arrival);
  }
  if (refused_s_ && clock_->now_s() - *refused_s_ >= kTryAgainS) write_waiting();
  carry_out(rounds_.on_tick(clock_->now_s()));
}

void Coordinator::request_stop() { carry_out(rounds_.request_stop(clock_->now_s())); }

void Coordinator::take(const Arrival& arrival) {
  if (!arrival.frame) {
    carry_out(rounds_.on_lost(arrival.peer, clock_->now_s()));
    return;
  }
  const Result<Message> message = decode(*arrival.frame);
  if (!message) {
    log_warn("refused from={} reason=\"{}\"", arrival.peer, message.error().message);
    return;
  }
  const auto* hello = std::get_if<Hello>(&*message);
  if (hello != nullptr && rounds_.may_answer(arrival.peer, *hello)) {
    transport_->set_address(arrival.peer, hello->address);
  }
  if (const auto* report = std::get_if<Report>(&*message)) take_report(arrival.peer, *report);
  carry_out(rounds_.on_message(arrival.peer, *message, clock_->now_s()));
  const auto* status = std::get_if<SiteStatus>(&*message);
  if (status != nullptr && callbacks_.on_status) callbacks_.on_status(arrival.peer, *status);
}

void Coordinator::take_report(const std::string& site, const Report& report) {
  try {
    if (report.name == "step") {
      if (callbacks_.on_step) callbacks_.on_step(train::step_report_from_json(report.json));
    } else if (report.name == "evaluation") {
      if (callbacks_.on_evaluation) {
        callbacks_.on_evaluation(train::evaluation_report_from_json(report.json));
      }
    } else {
      nlohmann::json fields = parse_json(report.json);
      fields["site"] = site;
      note_journal(journal_->record_event(report.name, fields.dump()));
      announce(report.name, fields.dump());
    }
  } catch (const std::exception& error) {  // a report that cannot be read must not end the run
    log_warn("refused from={} reason=\"{}\"", site, error.what());
  }
}

void Coordinator::carry_out(RoundOutput output) {
  if (is_deposed_) return;
  if (const std::optional<RoundOutput> now = outbox_.put(std::move(output))) tell(*now);
  if (!refused_s_) write_waiting();
}

// A full disk alone does not hold a run up: then the journal keeps in memory what it was given.
void Coordinator::write_waiting() {
  while (outbox_.is_waiting() && !is_deposed_) {
    if (store_ != journal_) {
      const Status written = store_->write(outbox_.first().writes);
      note_store(written);
      if (!written) return;
    }
    tell(outbox_.take_first());
  }
}

void Coordinator::tell(const RoundOutput& output) {
  note_journal(journal_->record(output.writes, output.commits, output.events));
  for (const Commit& commit : output.commits) {
    nlohmann::json members = nlohmann::json::array();
    for (const MemberShare& member : commit.members) members.push_back(member.site);
    announce("commit",
             nlohmann::json{{"exchange", commit.exchange},
                            {"epoch", commit.epoch},
                            {"members", members},
                            {"hash", commit.hash}}
                 .dump());
  }
  for (const auto& [name, fields] : output.events) announce(name, fields);
  for (const auto& [site, message] : output.messages) {
    transport_->send(site, encode(kCoordinatorName, message));
  }
}

void Coordinator::announce(const std::string& name, const std::string& fields_json) {
  log_debug("event name={} fields={}", name, fields_json);
  if (callbacks_.on_event) callbacks_.on_event(name, fields_json);
}

void Coordinator::note_store(const Status& written) {
  if (!written && written.error().code == ErrorCode::kRefused) {
    is_deposed_ = true;
    log_warn("this coordinator is replaced reason=\"{}\"", written.error().message);
    return;
  }
  const bool was_refused = refused_s_.has_value();
  refused_s_ = written ? std::nullopt : std::optional(clock_->now_s());
  if (was_refused == refused_s_.has_value()) return;
  const std::string message = written ? "the state can be written again"
                                      : "the state cannot be written; training goes on, nothing "
                                        "new is decided: " +
                                            written.error().message;
  announce("warning", nlohmann::json{{"message", message}}.dump());
}

void Coordinator::note_journal(const Status& written) {
  const bool was_behind = std::exchange(journal_is_behind_, !written);
  if (was_behind == journal_is_behind_) return;
  const std::string message =
      written ? "the journal is whole again"
              : "the journal waits in memory, training goes on: " + written.error().message;
  if (callbacks_.on_event) {
    callbacks_.on_event("warning", nlohmann::json{{"message", message}}.dump());
  }
}

}  // namespace pelago::sites
