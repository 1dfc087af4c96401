from limrank.records import Query


def test_a_question_is_text_and_instruction_in_any_letters_and_spacing():
    assert Query("a", " A  Cat", "not on ROOFS ").question == Query("b", "a cat not on", "roofs").question
    assert Query("a", "a cat").question != Query("a", "a cat", "not on roofs").question
