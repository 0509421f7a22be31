// Judging pairs of videos, without a page: what is shown, what was answered, what is saved.
// Order of pairs and sides are drawn once for each person.

function startJudging(data, random, saved) {
  const count = data.pairs.length;
  const order = data.pairs.map((_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  const fresh = {
    place: 0, rater: "", order,
    swapped: data.pairs.map(() => random() < 0.5),
    answers: data.pairs.map(() => ({})),
  };
  const fits = saved && saved.order && saved.order.length === count;
  const state = fits ? saved : fresh;
  const names = data.questions.map((question) => question.name);
  const at = (place) => state.order[place];
  const complete = (pair) => names.every((name) => state.answers[pair][name]);

  return {
    state,
    count,
    // What is on the screen: the videos of the left and of the right side, and the answers so far.
    shown() {
      const pair = data.pairs[at(state.place)];
      const sides = state.swapped[at(state.place)] ? [1, 0] : [0, 1];
      return {
        text: pair.text, kind: pair.kind, references: pair.references, answers: state.answers[at(state.place)],
        left: pair.videos[sides[0]], right: pair.videos[sides[1]],
      };
    },
    answer(name, value) { state.answers[at(state.place)][name] = value; },
    // The first question without an answer; null when the pair is done.
    open() { return names.find((name) => !state.answers[at(state.place)][name]) || null; },
    done() { return state.answers.filter((_, pair) => complete(pair)).length; },
    isFirst() { return state.place === 0; },
    isLast() { return state.place === count - 1; },
    move(step) { state.place = Math.min(Math.max(state.place + step, 0), count - 1); },
    // Only pairs with an answer to every question: a winner may be worse in nothing.
    result() {
      const judgements = [];
      for (const pair of state.order) {
        if (!complete(pair)) continue;
        const places = data.pairs[pair].places;
        const [left, right] = state.swapped[pair] ? [places[1], places[0]] : places;
        judgements.push({ clip_id: data.pairs[pair].clip_id, left, right, answers: state.answers[pair] });
      }
      return { format: data.format, candidates: data.candidates, rater: state.rater, judgements };
    },
  };
}
